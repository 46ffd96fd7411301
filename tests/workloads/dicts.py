"""Big dicts, lists, sets and strings in CPython; prints checksums of what they hold.

usage: dicts.py [MIB]     MIB is roughly the native peak
"""
import random
import sys

mib = int(sys.argv[1]) if len(sys.argv) > 1 else 200
count = mib * 2500
rng = random.Random(2012)

people = {}
for i in range(count):
    people[f"person-{i:08d}"] = {"id": i, "tags": [i % 7, i % 11], "score": i * 0.5} if i % 4 == 0 else (i, str(i * 7919))
numbers = list(range(count * 2))
rng.shuffle(numbers)

# Updates all over the place, deletions and insertions: the dict is resized and its holes are refilled.
for _ in range(count):
    i = rng.randrange(count)
    key = f"person-{i:08d}"
    old = people.get(key)
    if isinstance(old, dict):
        old["score"] += 1
    elif old is None:
        people[key] = (i, "again")
    elif i % 5 == 0:
        del people[key]

total = 0
for key, value in people.items():
    if isinstance(value, dict):
        total += value["id"] * 3 + int(value["score"] * 2) + sum(value["tags"])
    else:
        total += value[0] + len(value[1])
    total = (total * 31 + len(key)) % (1 << 61)
print("people", len(people), total)

numbers.sort()
print("numbers", len(numbers), all(n == i for i, n in enumerate(numbers)), sum(numbers))
words = {}
for key in people:
    words.setdefault(key[-3:], []).append(key)
print("groups", len(words), sum(hash_ok for hash_ok in (len(v) for v in words.values())), max(map(len, words.values())))
