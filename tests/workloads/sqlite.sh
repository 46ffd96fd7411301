#!/bin/sh
# An in-memory SQLite data base: fill, index, update, join, delete, integrity check; prints what the queries find.
# usage: sqlite.sh [MIB]     MIB is roughly the native peak
set -eu
rows=$((${1:-150} * 2900))
sqlite3 :memory: <<SQL
pragma temp_store = memory;
create table item(id integer primary key, name text, price integer, note text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < $rows)
insert into item select i, 'item-' || (i * 7919 % 1000003), i * 31 % 10007, printf('%.*c', 40 + i % 120, char(97 + i % 26)) from n;
create index item_name on item(name);
create index item_price on item(price);
update item set price = price + 1, note = note || '-changed' where id % 3 = 0;
select count(*), sum(price), max(name), sum(length(note)) from item;
select count(*), sum(a.price) from item a join item b on b.name = 'item-' || (a.id * 7919 % 1000003) where a.id % 5 = 0;
delete from item where id % 4 = 1;
select price % 10, count(*), min(note) from item group by price % 10 order by 1;
select sum(length(note)) from (select note from item order by note, id);
pragma integrity_check;
SQL
