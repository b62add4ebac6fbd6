//! The results folder: what is written there, how, and how it is read again.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::histogram_files::{HistogramData, interval_log, percentile_distribution};
use super::model::{Report, SCHEMA};
use super::{csv, html, json};

/// Writes all files of a report into `dir`, which is created, and returns their paths, the
/// page first. Every file is written under another name and then renamed, so that a reader
/// never sees half of one.
///
/// # Errors
/// When the folder cannot be created or a file cannot be written; the message names it.
pub fn write_all(dir: &Path, report: &Report, data: &HistogramData) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut written = write_drawn(dir, report)?;
    written.insert(1, write(dir, "report.json", &to_json(report)?)?);
    for run in &data.runs {
        let primary = run.name == report.primary_run;
        let name = if primary {
            "latency.hgrm".to_owned()
        } else {
            format!("latency-{}.hgrm", run.name.replace(['/', ' '], "-"))
        };
        written.push(write(dir, &name, percentile_distribution(&run.response).as_bytes())?);
    }
    let log = interval_log(data, report.started_unix_ns, &report.primary_run)?;
    written.push(write(dir, "latency.hlog", &log)?);
    Ok(written)
}

/// `report.json` as bytes: for `--json` too.
///
/// # Errors
/// Never for a report that [`super::complete`] has seen.
pub fn to_json(report: &Report) -> Result<Vec<u8>> {
    json::to_vec(report).context("report.json")
}

/// Draws the page and the CSV of a results folder again, from its `report.json` alone.
///
/// # Errors
/// As [`read`], and when a file cannot be written.
pub fn redraw(dir: &Path) -> Result<(Report, Vec<PathBuf>)> {
    let report = read(dir)?;
    let folder = if dir.is_dir() { dir } else { dir.parent().unwrap_or(Path::new(".")) };
    let written = write_drawn(folder, &report)?;
    Ok((report, written))
}

/// Reads a results folder, or a `report.json` by its own path.
///
/// # Errors
/// When there is no such file, it is not a report, or its schema is newer than this program.
pub fn read(path: &Path) -> Result<Report> {
    let path = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
    let shown = path.display();
    let text = fs::read(&path).with_context(|| format!("cannot read {shown}"))?;
    parse(&text).with_context(|| format!("cannot use {shown}"))
}

fn parse(text: &[u8]) -> Result<Report> {
    // The schema first: a newer report need not even parse as one of ours.
    let value: serde_json::Value = serde_json::from_slice(text).context("it is not JSON")?;
    let schema = value["schema"].as_str().unwrap_or_default();
    let (family, known) = SCHEMA.split_once('/').expect("name and major version");
    match schema.split_once('/') {
        Some((name, version)) if name == family => {
            let known: u32 = known.parse().expect("a number");
            match version.parse::<u32>() {
                Ok(version) if version <= known => {}
                _ => bail!(
                    "its schema is {schema:?} and this program reads up to {SCHEMA:?}; \
                     use the ringwal that wrote it, or a newer one"
                ),
            }
        }
        _ => bail!("its field \"schema\" is {schema:?}; a report of ringwal says {SCHEMA:?}"),
    }
    serde_json::from_value(value).context("a field does not have the type it should")
}

fn write_drawn(dir: &Path, report: &Report) -> Result<Vec<PathBuf>> {
    Ok(vec![
        write(dir, "report.html", html::page(report).as_bytes())?,
        write(dir, "latency.csv", csv::latency(report).as_bytes())?,
        write(dir, "timeseries.csv", csv::time_series(report).as_bytes())?,
    ])
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = dir.join(name);
    let unfinished = dir.join(format!(".{name}.{}.unfinished", std::process::id()));
    write_and_rename(&unfinished, &path, bytes).map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        anyhow::Error::new(error).context(format!("cannot write {}", path.display()))
    })?;
    Ok(path)
}

fn write_and_rename(unfinished: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(unfinished)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_report_comes_back_as_it_was_written() {
        let (report, data) = sample::report();
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("results/today");
        let written = write_all(&results, &report, &data).unwrap();
        let mut names: Vec<String> = fs::read_dir(&results)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "latency-idle.hgrm",
                "latency-open.hgrm",
                "latency-window.hgrm",
                "latency.csv",
                "latency.hgrm",
                "latency.hlog",
                "report.html",
                "report.json",
                "timeseries.csv"
            ]
        );
        assert_eq!(written.len(), names.len());
        assert!(written[0].ends_with("report.html"));
        assert!(read(&results).unwrap() == report);
        assert!(read(&results.join("report.json")).unwrap() == report);

        let page = fs::read(&written[0]).unwrap();
        fs::write(&written[0], "gone").unwrap();
        redraw(&results).unwrap();
        assert!(fs::read(&written[0]).unwrap() == page, "drawn again, the same");
    }

    #[test]
    fn other_schemas_are_refused_by_name() {
        let refused = |text: &str| format!("{:#}", parse(text.as_bytes()).unwrap_err());
        let newer = refused(r#"{"schema": "ringwal.bench/2", "runs": 7}"#);
        assert!(newer.contains("\"ringwal.bench/2\" and this program reads up to"), "{newer}");
        assert!(refused(r#"{"runs": []}"#).contains("field \"schema\" is \"\""));
        assert!(refused("hello").contains("it is not JSON"));
        assert!(refused(r#"{"schema": "ringwal.bench/1", "runs": 7}"#).contains("type"));
    }

    #[test]
    fn unknown_and_missing_fields_are_tolerated() {
        let text = r#"{"schema": "ringwal.bench/1", "new": 1,
            "runs": [{"name": "idle", "response": {"p50_ns": 5, "p42_ns": 4}}]}"#;
        let report = parse(text.as_bytes()).unwrap();
        assert_eq!(report.runs[0].response.p50_ns, 5);
    }
}
