//! The engine beside its bare codec, on pages of real programs.
//!
//! `cargo bench -p tmem --bench engine -- [--quick] [--codec lz4|zstd:LEVEL]... [FILE.pages]...`
//!
//! Without files, samples from four programs are used, 64 pages each. Same-filled pages are left out: the store would win
//! them for nothing. Bare codec and store take turns, round by round, on the same pages in the same order.

use std::sync::Barrier;
use std::time::Instant;

use tmem::testing::{BareCodec, Random};
use tmem::{CodecKind, Config, Key, PAGE_SIZE, Page, PoolKind, PoolOptions, Store};

/// Nanoseconds of single operations.
#[derive(Default)]
struct Times(Vec<u32>);

impl Times {
    fn add<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.0.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
        result
    }

    fn percentile(&self, percent: usize) -> u32 {
        self.0[(self.0.len() - 1) * percent / 100]
    }

    fn mean(&self) -> f64 {
        self.0.iter().map(|time| f64::from(*time)).sum::<f64>() / self.0.len() as f64
    }

    fn row(&self) -> String {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| self.percentile(percent));
        format!("{:7.0} {p50:6} {p90:6} {p99:6}", self.mean())
    }
}

/// The four kinds of work, as measured by one thread.
#[derive(Default)]
struct Figures {
    bare_compress: Times,
    put: Times,
    bare_expand: Times,
    get: Times,
}

impl Figures {
    fn absorb(&mut self, other: Self) {
        for (mine, theirs) in [
            (&mut self.bare_compress, other.bare_compress),
            (&mut self.put, other.put),
            (&mut self.bare_expand, other.bare_expand),
            (&mut self.get, other.get),
        ] {
            mine.0.extend(theirs.0);
            mine.0.sort_unstable();
        }
    }
}

struct Sample {
    name: String,
    pages: Vec<Page>,
}

fn same_filled(page: &Page) -> bool {
    page.chunks(8).all(|word| word == &page[..8])
}

fn sample(name: &str, bytes: &[u8], pages_min: usize) -> Sample {
    let (pages, _) = bytes.as_chunks::<PAGE_SIZE>();
    let pages: Vec<Page> = pages.iter().copied().filter(|page| !same_filled(page)).collect();
    let repeats = pages_min.div_ceil(pages.len());
    let name = name.rsplit('/').next().unwrap_or(name).trim_end_matches(".pages").to_owned();
    Sample { name, pages: pages.repeat(repeats) }
}

/// One thread's rounds. `store` is fresh for each round; all threads start and stop together.
fn work(pages: &[Page], kind: CodecKind, object: u64, store: &Store, pool: tmem::PoolId, barrier: &Barrier) -> Figures {
    let mut figures = Figures::default();
    let mut bare = BareCodec::new(kind);
    let mut order: Vec<usize> = (0..pages.len()).collect();
    let mut random = Random::new(object);
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    let mut packed = vec![0; 0];
    let mut places = vec![0..0; pages.len()];
    packed.reserve(pages.len() * PAGE_SIZE);
    barrier.wait();
    for (page, place) in pages.iter().zip(&mut places) {
        let bytes = figures.bare_compress.add(|| bare.compress(page));
        *place = packed.len()..packed.len() + bytes.len();
        packed.extend_from_slice(bytes);
    }
    barrier.wait();
    for (index, page) in (0..).zip(pages) {
        let key = Key::new(pool, object, index);
        figures.put.add(|| store.put(key, page)).expect("the budget is ample");
    }
    let mut out = [0; PAGE_SIZE];
    barrier.wait();
    for at in &order {
        figures.bare_expand.add(|| bare.expand(&packed[places[*at].clone()], &mut out));
    }
    barrier.wait();
    for at in &order {
        let key = Key::new(pool, object, *at as u32);
        assert!(figures.get.add(|| store.get(key, &mut out)).expect("nothing is damaged"));
        assert!(out == pages[*at]);
    }
    figures
}

fn measure(sample: &Sample, kind: CodecKind, threads: usize, rounds: usize) -> (Figures, f64) {
    let mut figures = Figures::default();
    let mut density = 0.0;
    for _ in 0..rounds {
        let store = Store::new(Config::new(1 << 30).codec(kind)).expect("a store");
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).expect("a pool");
        let barrier = Barrier::new(threads);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads as u64)
                .map(|object| {
                    scope.spawn({
                        let (store, barrier) = (&store, &barrier);
                        move || work(&sample.pages, kind, object, store, pool, barrier)
                    })
                })
                .collect();
            for worker in workers {
                figures.absorb(worker.join().expect("no thread panics"));
            }
        });
        let stats = store.stats();
        density = stats.original_bytes as f64 / stats.memory_bytes as f64;
    }
    (figures, density)
}

fn parse_codec(text: &str) -> CodecKind {
    match text.split_once(':') {
        None if text == "lz4" => CodecKind::Lz4,
        Some(("zstd", level)) => CodecKind::Zstd { level: level.parse().expect("a level is a number") },
        _ => panic!("a codec is lz4 or zstd:LEVEL, not {text}"),
    }
}

fn main() {
    let mut quick = false;
    let mut kinds = Vec::new();
    let mut files = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" | "--test" => quick = true,
            "--bench" => {}
            "--codec" => kinds.push(parse_codec(&arguments.next().expect("--codec wants a codec"))),
            file => files.push(file.to_owned()),
        }
    }
    if kinds.is_empty() {
        kinds = vec![CodecKind::Lz4, CodecKind::Zstd { level: -1 }, CodecKind::Zstd { level: 1 }];
    }
    let (pages_min, rounds) = if quick { (64, 1) } else { (2048, 5) };
    let built_in: [(&str, &[u8]); 4] = [
        ("gcc", include_bytes!("data/gcc.pages")),
        ("node", include_bytes!("data/node.pages")),
        ("python", include_bytes!("data/python.pages")),
        ("redis", include_bytes!("data/redis.pages")),
    ];
    let samples: Vec<Sample> = if files.is_empty() {
        built_in.iter().map(|(name, bytes)| sample(name, bytes, pages_min)).collect()
    } else {
        let read = |name: &String| sample(name, &std::fs::read(name).expect(name), 1);
        files.iter().map(read).collect()
    };
    println!(
        "ns per page: mean, p50, p90, p99 of the bare codec and of the store; store/bare of the means and medians"
    );
    for sample in &samples {
        for kind in &kinds {
            for threads in [1, 2] {
                let (figures, density) = measure(sample, *kind, threads, rounds);
                println!("{} {kind:?} threads {threads} density {density:.2}", sample.name);
                for (name, bare, own) in
                    [("put", &figures.bare_compress, &figures.put), ("get", &figures.bare_expand, &figures.get)]
                {
                    let median = f64::from(own.percentile(50)) / f64::from(bare.percentile(50));
                    println!(
                        "  {name}  bare {}   store {}   x{:.3} x{median:.3}",
                        bare.row(),
                        own.row(),
                        own.mean() / bare.mean()
                    );
                }
            }
        }
    }
}
