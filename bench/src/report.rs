//! What one run says: sections of figures, tables and plots; promises, and which of them fell short; raw numbers. It is
//! printed as it grows, and written as a page of Markdown with pictures and a JSON file beside it.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::machine::Machine;

/// What was promised of a figure.
#[derive(Debug, Clone, PartialEq)]
pub enum Promise {
    Nothing,
    Said { text: String, kept: bool },
}

impl Promise {
    pub fn at_most(value: f64, limit: f64, unit: &str) -> Self {
        Self::Said { text: with_unit("≤", limit, unit), kept: value <= limit }
    }

    pub fn at_least(value: f64, limit: f64, unit: &str) -> Self {
        Self::Said { text: with_unit("≥", limit, unit), kept: value >= limit }
    }

    pub fn holds(kept: bool, text: &str) -> Self {
        Self::Said { text: text.into(), kept }
    }
}

fn with_unit(sign: &str, limit: f64, unit: &str) -> String {
    let blank = if unit.is_empty() || unit == "×" { "" } else { " " };
    format!("{sign} {limit}{blank}{unit}")
}

struct Figure {
    what: String,
    got: String,
    promise: Promise,
}

enum Part {
    Text(String),
    Figures(Vec<Figure>),
    /// Promises about what a table shows: no rows of their own.
    Judged(Figure),
    Table {
        head: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    Plot {
        name: String,
        about: String,
        svg: String,
    },
}

struct Section {
    title: String,
    parts: Vec<Part>,
}

pub struct Report {
    pub machine: Machine,
    quick: bool,
    sections: Vec<Section>,
    raw: serde_json::Map<String, Value>,
}

impl Report {
    pub fn new(machine: Machine, quick: bool) -> Self {
        Self { machine, quick, sections: vec![], raw: serde_json::Map::new() }
    }

    /// What comes next stands under this heading; neighbours share one.
    pub fn section(&mut self, title: &str, about: &str) {
        if self.sections.last().is_some_and(|section| section.title == title) {
            return;
        }
        println!("\n## {title}");
        let parts = if about.is_empty() { vec![] } else { vec![Part::Text(about.into())] };
        self.sections.push(Section { title: title.into(), parts });
    }

    fn add(&mut self, part: Part) {
        if self.sections.is_empty() {
            self.section("Measurements", "");
        }
        if let Some(section) = self.sections.last_mut() {
            section.parts.push(part);
        }
    }

    pub fn text(&mut self, text: &str) {
        println!("{text}");
        self.add(Part::Text(text.into()));
    }

    /// One figure; those that follow each other make one table.
    pub fn figure(&mut self, what: &str, got: &str, promise: Promise) {
        let said = match &promise {
            Promise::Nothing => String::new(),
            Promise::Said { text, kept: true } => text.clone(),
            Promise::Said { text, kept: false } => format!("{text}   FELL SHORT"),
        };
        println!("{what:<64} {got:>24}   {said}");
        let figure = Figure { what: what.into(), got: got.into(), promise };
        if let Some(Part::Figures(figures)) = self.sections.last_mut().and_then(|section| section.parts.last_mut()) {
            figures.push(figure);
        } else {
            self.add(Part::Figures(vec![figure]));
        }
    }

    /// A promise about what stands in a table already.
    pub fn judge(&mut self, what: &str, got: &str, promise: Promise) {
        if let Promise::Said { text, kept: false } = &promise {
            println!("{what:<64} {got:>24}   {text}   FELL SHORT");
        }
        self.add(Part::Judged(Figure { what: what.into(), got: got.into(), promise }));
    }

    pub fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) {
        println!("{}", head.join(" | "));
        for row in &rows {
            println!("{}", row.join(" | "));
        }
        self.add(Part::Table { head: head.iter().map(|cell| (*cell).to_owned()).collect(), rows });
    }

    pub fn plot(&mut self, name: &str, about: &str, svg: String) {
        self.add(Part::Plot { name: name.into(), about: about.into(), svg });
    }

    /// Numbers as they were measured, for the JSON file.
    pub fn raw(&mut self, name: &str, value: Value) {
        self.raw.insert(name.into(), value);
    }

    fn promises(&self) -> impl Iterator<Item = (&Section, &Figure, &str, bool)> {
        self.sections.iter().flat_map(|section| {
            let figures = section.parts.iter().flat_map(|part| match part {
                Part::Figures(figures) => figures.as_slice(),
                Part::Judged(figure) => std::slice::from_ref(figure),
                _ => &[],
            });
            figures.filter_map(move |figure| match &figure.promise {
                Promise::Said { text, kept } => Some((section, figure, text.as_str(), *kept)),
                Promise::Nothing => None,
            })
        })
    }

    /// What fell short, a line each.
    pub fn shortfalls(&self) -> Vec<String> {
        let short = self.promises().filter(|(_, _, _, kept)| !kept);
        short
            .map(|(section, figure, text, _)| {
                format!("{}: {}: {}, promised {text}", section.title, figure.what, figure.got)
            })
            .collect()
    }

    pub fn markdown(&self) -> String {
        let kept = self.promises().filter(|(_, _, _, kept)| *kept).count();
        let short = self.shortfalls();
        let mut page = format!(
            "# Measurements\n\nWritten by `make bench`{}; [bench/README.md](../bench/README.md) says how each figure is made, and repeats it.\n\n",
            if self.quick { " with `--quick`: rounds are few and short" } else { "" }
        );
        page += &self.machine.markdown();
        page += &format!("\n{kept} of {} promises are kept.", kept + short.len());
        page += if short.is_empty() { "\n" } else { " These fall short:\n\n" };
        for line in &short {
            page += &format!("- {line}\n");
        }
        page += "\nEvery number as it was measured: [measurements/results.json](measurements/results.json). Brackets hold the least and the greatest of the rounds, or the middle half of single samples where it says so.\n";
        for section in &self.sections {
            page += &format!("\n## {}\n", section.title);
            for part in section.parts.iter().filter(|part| !matches!(part, Part::Judged(_))) {
                page += "\n";
                page += &part.markdown();
            }
        }
        page
    }

    /// The numbers behind the page.
    pub fn json(&self) -> Value {
        let promises: Vec<Value> = self
            .promises()
            .map(|(section, figure, text, kept)| {
                json!({"section": section.title, "what": figure.what, "measured": figure.got, "promised": text, "kept": kept})
            })
            .collect();
        json!({"quick": self.quick, "machine": self.machine.json(), "promises": promises, "raw": self.raw})
    }

    /// `measurements.md`, and beside it the folder `measurements` with pictures and numbers.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let beside = folder.join("measurements");
        // Pictures of an earlier run would look like this one's.
        if beside.exists() {
            fs::remove_dir_all(&beside)?;
        }
        fs::create_dir_all(&beside)?;
        for part in self.sections.iter().flat_map(|section| &section.parts) {
            if let Part::Plot { name, svg, .. } = part {
                fs::write(beside.join(format!("{name}.svg")), svg)?;
            }
        }
        fs::write(beside.join("results.json"), lines(&self.json()))?;
        fs::write(folder.join("measurements.md"), self.markdown())
    }
}

/// JSON with one measured thing a line: readable, and a difference between two runs is, too.
fn lines(value: &Value) -> String {
    fn put(value: &Value, indent: usize, text: &mut String) {
        let nested = |value: &Value| value.is_array() || value.is_object();
        let blanks = " ".repeat(indent + 1);
        match value {
            Value::Object(map) if map.values().any(nested) => {
                *text += "{\n";
                for (number, (name, value)) in map.iter().enumerate() {
                    *text += &format!("{blanks}{}: ", json!(name));
                    put(value, indent + 1, text);
                    *text += if number + 1 < map.len() { ",\n" } else { "\n" };
                }
                *text += &format!("{}}}", &blanks[1..]);
            }
            Value::Array(list) if list.iter().any(nested) => {
                *text += "[\n";
                for (number, value) in list.iter().enumerate() {
                    *text += &format!("{blanks}{value}");
                    *text += if number + 1 < list.len() { ",\n" } else { "\n" };
                }
                *text += &format!("{}]", &blanks[1..]);
            }
            flat => *text += &flat.to_string(),
        }
    }
    let mut text = String::new();
    put(value, 0, &mut text);
    text + "\n"
}

impl Part {
    fn markdown(&self) -> String {
        match self {
            Self::Text(text) => format!("{text}\n"),
            Self::Judged(_) => String::new(),
            Self::Plot { name, about, .. } => format!("![{about}](measurements/{name}.svg)\n"),
            Self::Table { head, rows } => table(head, rows),
            Self::Figures(figures) => {
                let rows: Vec<Vec<String>> = figures
                    .iter()
                    .map(|figure| {
                        let promise = match &figure.promise {
                            Promise::Nothing => String::new(),
                            Promise::Said { text, kept: true } => text.clone(),
                            Promise::Said { text, kept: false } => format!("**{text}: falls short**"),
                        };
                        vec![figure.what.clone(), figure.got.clone(), promise]
                    })
                    .collect();
                table(&["what".into(), "measured".into(), "promised".into()], &rows)
            }
        }
    }
}

fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = vec!["---".to_owned(); head.len()];
    std::iter::once(line(head)).chain([line(&rule)]).chain(rows.iter().map(|row| line(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(Machine::default(), false)
    }

    #[test]
    fn a_promise_is_kept_up_to_its_limit_and_not_beyond() {
        let kept = |promise: Promise| matches!(promise, Promise::Said { kept: true, .. });
        assert!(kept(Promise::at_most(35.0, 35.0, "us")) && !kept(Promise::at_most(35.1, 35.0, "us")));
        assert!(kept(Promise::at_least(1.3, 1.3, "×")) && !kept(Promise::at_least(1.29, 1.3, "×")));
        assert!(!kept(Promise::at_most(f64::NAN, 35.0, "us")), "what was not measured is not kept");
        assert!(!kept(Promise::at_least(f64::NAN, 1.3, "×")), "what was not measured is not kept");
    }

    #[test]
    fn what_fell_short_is_listed_and_nothing_else() {
        let mut report = report();
        report.section("Rates", "");
        report.figure("a", "36 us", Promise::at_most(36.0, 35.0, "us"));
        report.figure("b", "2.0×", Promise::at_least(2.0, 1.3, "×"));
        report.figure("c", "1", Promise::Nothing);
        report.judge("d", "1.0×", Promise::at_least(1.0, 1.3, "×"));
        assert_eq!(report.shortfalls(), ["Rates: a: 36 us, promised ≤ 35 us", "Rates: d: 1.0×, promised ≥ 1.3×"]);
        let page = report.markdown();
        assert!(!page.contains("| d |"), "what a table shows has no second row: {page}");
        assert!(page.contains("1 of 3 promises are kept. These fall short:"), "{page}");
        assert!(
            page.contains("| a | 36 us | **≤ 35 us: falls short** |\n| b | 2.0× | ≥ 1.3× |\n| c | 1 |  |\n"),
            "{page}"
        );
    }

    #[test]
    fn a_page_has_sections_tables_and_plots_in_their_order() {
        let mut report = report();
        report.section("One", "About it.");
        report.table(&["x", "y|z"], vec![vec!["1".into(), "2".into()]]);
        report.plot("one", "a picture", "<svg/>".into());
        let page = report.markdown();
        let end =
            "## One\n\nAbout it.\n\n| x | y\\|z |\n| --- | --- |\n| 1 | 2 |\n\n![a picture](measurements/one.svg)\n";
        assert!(page.ends_with(end), "{page}");
    }

    #[test]
    fn files_are_written_and_those_of_an_earlier_run_are_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let beside = folder.path().join("measurements");
        fs::create_dir_all(&beside).expect("made");
        fs::write(beside.join("old.svg"), "").expect("written");
        let mut report = report();
        report.plot("new", "a picture", "<svg/>".into());
        report.raw("rates", json!([{"a": 1}, {"a": 2}]));
        report.write(folder.path()).expect("written");
        let names = fs::read_dir(&beside).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        assert_eq!(names, ["new.svg", "results.json"]);
        let text = fs::read_to_string(beside.join("results.json")).expect("read");
        let read: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read["raw"]["rates"][1]["a"], json!(2));
        assert!(text.contains("   {\"a\":1},\n   {\"a\":2}\n"), "{text}");
    }
}
