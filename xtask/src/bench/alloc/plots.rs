//! Plots of the figures, as SVG.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::prelude::*;

use super::Results;
use super::density::MEAN;
use super::samples::{ALL, ALLOCATORS, CODECS};

const SIZE: (u32, u32) = (960, 480);

/// Bars side by side: a value of each series in each group.
struct Bars<'a> {
    title: &'a str,
    groups: Vec<String>,
    series: Vec<(String, Vec<f64>)>,
}

/// Draws what was measured into a directory, which is made.
pub fn draw(results: &Results, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if let Some(density) = &results.density {
        bars(&dir.join("density.svg"), &density_bars(density))?;
    }
    if let Some(rows) = &results.traces {
        bars(&dir.join("hits.svg"), &hit_bars(rows))?;
        bars(&dir.join("evictions.svg"), &eviction_bars(rows))?;
        lines(&dir.join("drain.svg"), "Fill, drain: memory without fixed bytes / live compressed bytes", rows)?;
    }
    if let Some(rows) = &results.latency {
        let groups = ["p50", "p99", "p99.9"].map(str::to_owned).to_vec();
        let name = |row: &super::latency::Row| format!("{}, {:?}", row.allocator, row.neighbour);
        let series = rows.iter().map(|row| (name(row), row.get_us.to_vec())).collect();
        let title = "Microseconds per get, by what a second thread does";
        bars(&dir.join("latency.svg"), &Bars { title, groups, series })?;
    }
    println!("\nPlots are in {}", dir.display());
    Ok(())
}

fn density_bars(density: &super::density::Density) -> Bars<'static> {
    let mut groups: Vec<String> = Vec::new();
    let of_file = |row: &&super::density::Row| row.file != MEAN && row.file != ALL;
    for row in density.rows.iter().filter(of_file) {
        if !groups.contains(&row.file) {
            groups.push(row.file.clone());
        }
    }
    let mut series = Vec::new();
    for algorithm in ["lz4", "lzo-rle"] {
        let of_kernel = density.kernel.iter().filter(|row| row.algorithm == algorithm);
        let values: Vec<f64> = of_kernel.map(|row| row.density).collect();
        if !values.is_empty() {
            series.push((format!("zram, {algorithm}"), values));
        }
    }
    for (_, codec) in CODECS {
        for (_, name) in ALLOCATORS {
            let own = density.rows.iter().filter(of_file).filter(|row| row.codec == codec && row.allocator == name);
            series.push((format!("{name}, {codec}"), own.map(|row| row.density).collect()));
        }
    }
    Bars { title: "Density: original bytes / all memory", groups, series }
}

fn hit_bars(rows: &[super::traces::Row]) -> Bars<'static> {
    let caches: Vec<_> = rows.iter().filter(|row| row.hit_ratio.is_some()).collect();
    let mut series: Vec<_> = by_allocator(&caches, |row| row.hit_ratio.unwrap_or(f64::NAN) * 100.0);
    let once = caches.iter().filter(|row| row.allocator == ALLOCATORS[0].1);
    let ideals: Vec<_> = once.filter_map(|row| row.ideal).collect();
    for (name, pick) in [
        ("exact LRU", (|ideal| ideal.lru) as fn(&super::traces::Ideal) -> f64),
        ("MIN", |ideal| ideal.min),
        ("bound", |ideal| ideal.bound),
    ] {
        series.push((name.to_owned(), ideals.iter().map(|ideal| 100.0 * pick(ideal)).collect()));
    }
    Bars { title: "Hits in % at equal RAM", groups: traces(&caches), series }
}

fn eviction_bars(rows: &[super::traces::Row]) -> Bars<'static> {
    let rows: Vec<_> = rows.iter().collect();
    let series = by_allocator(&rows, |row| row.evictions_per_frame);
    Bars { title: "Pages that leave per frame taken back", groups: traces(&rows), series }
}

fn traces(rows: &[&super::traces::Row]) -> Vec<String> {
    rows.iter().filter(|row| row.allocator == ALLOCATORS[0].1).map(|row| row.trace.to_owned()).collect()
}

fn by_allocator(rows: &[&super::traces::Row], pick: fn(&super::traces::Row) -> f64) -> Vec<(String, Vec<f64>)> {
    let values = |name| rows.iter().filter(|row| row.allocator == name).map(|row| pick(row)).collect();
    ALLOCATORS.iter().map(|(_, name)| ((*name).to_owned(), values(*name))).collect()
}

fn bars(path: &Path, plot: &Bars<'_>) -> anyhow::Result<()> {
    draw_bars(path, plot).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw_bars(path: &Path, plot: &Bars<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let values = plot.series.iter().flat_map(|(_, values)| values).copied();
    let top = values.filter(|value| value.is_finite()).fold(0.0, f64::max) * 1.3;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let groups = plot.groups.len();
    let mut chart = ChartBuilder::on(&root)
        .caption(plot.title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(-0.5..groups as f64 - 0.5, 0.0..top.max(f64::MIN_POSITIVE))?;
    let label = |x: &f64| {
        let whole = (x - x.round()).abs() < 0.01 && x.round() >= 0.0;
        let name = whole.then(|| plot.groups.get(x.round() as usize)).flatten();
        name.cloned().unwrap_or_default()
    };
    chart.configure_mesh().disable_x_mesh().x_labels(2 * groups + 1).x_label_formatter(&label).draw()?;
    let width = 0.8 / plot.series.len() as f64;
    for (number, (name, values)) in plot.series.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let boxes = (0..).zip(values).filter(|(_, value)| value.is_finite()).map(|(group, value)| {
            let left = f64::from(group) - 0.4 + width * number as f64;
            Rectangle::new([(left, 0.0), (left + 0.9 * width, *value)], color.filled())
        });
        let legend = move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled());
        chart.draw_series(boxes)?.label(name).legend(legend);
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .position(SeriesLabelPosition::UpperRight)
        .draw()?;
    Ok(root.present()?)
}

fn lines(path: &Path, title: &str, rows: &[super::traces::Row]) -> anyhow::Result<()> {
    draw_lines(path, title, rows).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw_lines(path: &Path, title: &str, rows: &[super::traces::Row]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..1.0, 1.0..3.0)?;
    chart.configure_mesh().x_desc("share of the trace").draw()?;
    for (number, row) in rows.iter().filter(|row| row.trace == "fill, drain").enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let points = row.curve.iter().map(|(at, ratio)| (*at, ratio.min(3.0)));
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 12, y)], color);
        chart.draw_series(LineSeries::new(points, color))?.label(row.allocator).legend(legend);
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .position(SeriesLabelPosition::UpperRight)
        .draw()?;
    Ok(root.present()?)
}
