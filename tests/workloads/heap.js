// Objects, maps, strings and typed arrays on a JavaScript heap; prints checksums.
// usage: heap.js [MIB]     MIB is roughly the native peak
'use strict';
const mib = Number(process.argv[2] || 200);
const count = mib * 1450;

let state = 2012;
function random(below) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state % below;
}

const byName = new Map();
const nodes = [];
for (let i = 0; i < count; i++) {
  const node = { id: i, name: `node-${i}`, links: [], weight: (i * 7919) % 1000 };
  nodes.push(node);
  byName.set(node.name, node);
}
for (let i = 0; i < count; i++) {
  nodes[i].links.push(nodes[random(count)], nodes[random(count)]);
}
const table = new Float64Array(mib * 8192);
for (let i = 0; i < table.length; i++) table[i] = (i % 4096) * 0.25;

// A walk with no locality, then garbage, then a pass over everything.
let here = nodes[0];
let walked = 0;
for (let i = 0; i < count; i++) {
  here.weight += 1;
  walked = (Math.imul(walked, 31) + here.id) >>> 0;
  here = here.links[i & 1];
}
let garbage = 0;
for (let i = 0; i < count; i++) {
  const copy = { ...nodes[random(count)], extra: [i, i + 1, i + 2] };
  garbage = (garbage + copy.extra[2] + copy.weight) % 1000003;
}
let sum = 0;
for (const [name, node] of byName) {
  sum = (Math.imul(sum, 31) + node.weight + name.length + node.links[0].id) >>> 0;
}
let tableSum = 0;
for (let i = 0; i < table.length; i += 7) tableSum += table[i];
console.log(`nodes ${nodes.length} walked ${walked} garbage ${garbage} sum ${sum} table ${tableSum}`);
