//! Plots as SVG: panels of lines over steps (1, 8, 64, 512 at once), and panels of bars. Nothing in a picture depends on
//! fonts or scripts of whoever looks at it, and each has a white ground, so that it reads on a dark page too.

use crate::stats::{Spread, digits};

/// Colours that differ for the colour-blind as well (Okabe and Ito).
pub const OURS: &str = "#0072B2";
pub const THEIRS: &str = "#D55E00";
pub const OTHER: &str = "#777777";
pub const WRONG: &str = "#CC79A7";

pub struct Line {
    pub name: String,
    pub colour: &'static str,
    /// By step; None where nothing was measured.
    pub points: Vec<Option<Spread>>,
}

/// Lines over the same steps.
pub struct LinePanel {
    pub title: String,
    pub steps: Vec<String>,
    pub lines: Vec<Line>,
}

pub struct Bar {
    pub label: String,
    pub colour: &'static str,
    pub value: Spread,
}

pub struct BarPanel {
    pub title: String,
    pub bars: Vec<Bar>,
}

/// How values become lengths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    /// From zero to a round number beyond all values; logarithmic: from a power of ten to a power of ten.
    pub fn over(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let values: Vec<f64> = values.filter(|v| v.is_finite() && (!log || *v > 0.0)).collect();
        let most = values.iter().copied().fold(f64::NAN, f64::max);
        let least = values.iter().copied().fold(f64::NAN, f64::min);
        if !most.is_finite() || most <= 0.0 {
            return Self { low: if log { 1.0 } else { 0.0 }, high: 10.0, log };
        }
        if log {
            let low = 10_f64.powf(least.log10().floor());
            let high = 10_f64.powf(most.log10().ceil());
            return Self { low, high: if high > low { high } else { low * 10.0 }, log };
        }
        let step = step(most);
        Self { low: 0.0, high: (most / step).ceil() * step, log }
    }

    /// Where a value is, from 0 to 1; what is outside is at the edge.
    pub fn place(&self, value: f64) -> f64 {
        let place = if self.log {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        place.clamp(0.0, 1.0)
    }

    pub fn ticks(&self) -> Vec<f64> {
        let (mut ticks, mut tick) = (vec![], self.low);
        let step = step(self.high);
        while tick <= self.high * 1.000_001 {
            ticks.push(tick);
            tick = if self.log { tick * 10.0 } else { tick + step };
        }
        ticks
    }
}

/// `10` and not `10.0`.
fn tick_text(value: f64) -> String {
    let text = digits(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// 1, 2 or 5 times a power of ten, three to six of which make the whole.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 3.0).log10().floor());
    [5.0, 2.0].into_iter().map(|times| times * power).find(|step| most / step >= 3.0).unwrap_or(power)
}

const WIDTH: f64 = 270.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 40.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escape(words))
}

fn rule(from: (f64, f64), to: (f64, f64), colour: &str) -> String {
    let ((x1, y1), (x2, y2)) = (from, to);
    format!("<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\"/>\n")
}

fn picture(width: f64, height: f64, title: &str, content: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}{content}</svg>\n",
        escape(title),
        format_args!("<text x=\"10\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{}</text>\n", escape(title))
    )
}

/// Panels of lines, so many in a row; `across` says what the steps are. All panels have their own scale.
#[expect(clippy::cast_precision_loss, reason = "a handful of panels and steps")]
pub fn lines(title: &str, across: &str, panels: &[LinePanel], in_a_row: usize, log: bool) -> String {
    let mut content = String::new();
    for (number, panel) in panels.iter().enumerate() {
        let (column, row) = ((number % in_a_row) as f64, (number / in_a_row) as f64);
        content += &lines_panel(panel, across, (column * WIDTH, 44.0 + row * HEIGHT), log);
    }
    // The same names in every panel: one legend.
    let mut x = 10.0;
    for line in panels.first().map(|panel| panel.lines.as_slice()).unwrap_or_default() {
        content += &rule((x, 34.0), (x + 18.0, 34.0), line.colour).replace("/>", " stroke-width=\"2\"/>");
        content += &text(x + 23.0, 38.0, "start", &line.name);
        x += 40.0 + 6.5 * line.name.chars().count() as f64;
    }
    let columns = panels.len().min(in_a_row) as f64;
    let rows = panels.len().div_ceil(in_a_row) as f64;
    picture(columns * WIDTH, 44.0 + rows * HEIGHT, title, &content)
}

#[expect(clippy::cast_precision_loss, reason = "a handful of steps")]
fn lines_panel(panel: &LinePanel, across: &str, (x0, y0): (f64, f64), log: bool) -> String {
    let spreads = || panel.lines.iter().flat_map(|line| line.points.iter().flatten());
    let scale = Scale::over(spreads().flat_map(|spread| [spread.low, spread.high]), log);
    let (left, right, top, bottom) = (x0 + LEFT, x0 + WIDTH - RIGHT, y0 + TOP, y0 + HEIGHT - BOTTOM);
    let y = |value: f64| bottom - scale.place(value) * (bottom - top);
    let x = |step: usize| left + (step as f64 + 0.5) / panel.steps.len() as f64 * (right - left);
    let mut svg = format!("<g font-weight=\"bold\">{}</g>", text(left, y0 + 18.0, "start", &panel.title));
    for tick in scale.ticks() {
        svg += &rule((left, y(tick)), (right, y(tick)), "#ddd");
        svg += &text(left - 5.0, y(tick) + 4.0, "end", &tick_text(tick));
    }
    for (number, step) in panel.steps.iter().enumerate() {
        svg += &text(x(number), bottom + 15.0, "middle", step);
    }
    svg += &text(f64::midpoint(left, right), bottom + 30.0, "middle", across);
    for line in &panel.lines {
        let colour = line.colour;
        let points: Vec<(f64, Spread)> =
            line.points.iter().enumerate().filter_map(|(step, point)| Some((x(step), (*point)?))).collect();
        let path: Vec<String> = points.iter().map(|(x, point)| format!("{x:.1} {:.1}", y(point.median))).collect();
        if !path.is_empty() {
            svg += &format!("<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n", path.join("L"));
        }
        for (x, point) in points {
            svg += &rule((x, y(point.low)), (x, y(point.high)), colour);
            svg += &format!("<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>\n", y(point.median));
        }
    }
    svg
}

/// Panels of horizontal bars, one below the other on one scale; `unit` says what the lengths are.
#[expect(clippy::cast_precision_loss, reason = "a handful of panels and bars")]
pub fn bars(title: &str, unit: &str, legend: &[(&str, &str)], panels: &[BarPanel], log: bool) -> String {
    const ROW: f64 = 18.0;
    const LABEL: f64 = 230.0;
    const ALL: f64 = 760.0;
    const VALUE: f64 = 150.0;
    let values = panels.iter().flat_map(|panel| &panel.bars).flat_map(|bar| [bar.value.low, bar.value.high]);
    let scale = Scale::over(values, log);
    let x = |value: f64| LABEL + scale.place(value) * (ALL - LABEL - VALUE);
    let mut content = String::new();
    let mut at = 10.0;
    for (name, colour) in legend {
        content += &format!("<rect x=\"{at:.1}\" y=\"28\" width=\"11\" height=\"11\" fill=\"{colour}\"/>\n");
        content += &text(at + 16.0, 38.0, "start", name);
        at += 36.0 + 6.5 * name.chars().count() as f64;
    }
    let mut y = if legend.is_empty() { 28.0 } else { 50.0 };
    for panel in panels {
        content += &format!("<g font-weight=\"bold\">{}</g>", text(10.0, y + 14.0, "start", &panel.title));
        y += 22.0;
        let end = y + ROW * panel.bars.len() as f64;
        for tick in scale.ticks() {
            content += &rule((x(tick), y), (x(tick), end), "#ddd");
        }
        for bar in &panel.bars {
            let (start, length) = (LABEL, (x(bar.value.median) - LABEL).max(1.0));
            content += &text(LABEL - 6.0, y + 13.0, "end", &bar.label);
            content += &format!(
                "<rect x=\"{start:.1}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{}\"/>\n",
                y + 3.0,
                ROW - 6.0,
                bar.colour
            );
            content += &rule((x(bar.value.low), y + ROW / 2.0), (x(bar.value.high), y + ROW / 2.0), "#222");
            content += &text(x(bar.value.high) + 6.0, y + 13.0, "start", &bar.value.text());
            y += ROW;
        }
        y += 8.0;
    }
    for tick in scale.ticks() {
        content += &text(x(tick), y + 8.0, "middle", &tick_text(tick));
    }
    content += &text(f64::midpoint(LABEL, ALL - VALUE), y + 24.0, "middle", unit);
    picture(ALL, y + 34.0, title, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(value: f64) -> Spread {
        Spread { low: value, median: value, high: value }
    }

    #[test]
    fn a_scale_begins_at_zero_and_ends_at_a_round_number() {
        let scale = Scale::over([3700.0, 900.0].into_iter(), false);
        assert_eq!(scale.ticks(), [0.0, 1000.0, 2000.0, 3000.0, 4000.0]);
        assert!((scale.place(0.0), scale.place(4000.0)) == (0.0, 1.0) && (scale.place(1000.0) - 0.25).abs() < 1e-9);
        assert_eq!(Scale::over([0.9].into_iter(), false).ticks().len(), 6, "0, 0.2 … 1.0");
    }

    #[test]
    fn a_logarithmic_scale_goes_from_power_to_power() {
        let scale = Scale::over([0.02, 30.0].into_iter(), true);
        assert_eq!(scale.ticks().len(), 5, "{:?}", scale.ticks());
        assert!((scale.place(1.0) - 0.5).abs() < 1e-9, "{}", scale.place(1.0));
        assert!(scale.place(0.0) < 1e-9, "nothing is at the edge");
    }

    #[test]
    fn ticks_have_no_zeros_behind_the_point() {
        assert_eq!([0.0, 0.2, 1.0, 1.5, 10.0, 1000.0].map(tick_text), ["0", "0.2", "1", "1.5", "10", "1,000"]);
    }

    #[test]
    fn a_scale_of_nothing_is_one_all_the_same() {
        for log in [false, true] {
            let scale = Scale::over([f64::NAN, 0.0].into_iter(), log);
            assert!(!scale.ticks().is_empty() && scale.place(f64::NAN.max(1.0)).is_finite());
        }
    }

    #[test]
    fn lines_have_a_point_for_each_step_that_was_measured() {
        let line = Line { name: "A & B".into(), colour: OURS, points: vec![Some(even(1.0)), None, Some(even(2.0))] };
        let steps = ["1", "8", "64"].map(str::to_owned).to_vec();
        let svg = lines("Rates", "at once", &[LinePanel { title: "HTTP".into(), steps, lines: vec![line] }], 4, false);
        assert_eq!((svg.matches("<circle").count(), svg.matches("A &amp; B").count()), (2, 1), "{svg}");
        assert!(svg.starts_with("<svg xmlns") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_longer_time_is_a_longer_bar() {
        let bar = |label: &str, value: f64| Bar { label: label.into(), colour: OURS, value: even(value) };
        let panel = BarPanel { title: "t".into(), bars: vec![bar("short", 1.0), bar("long", 2.0)] };
        let svg = bars("Times", "ms", &[("ours", OURS)], &[panel], false);
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("height=\"12.0\""))
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert!(widths.len() == 2 && (widths[1] - 2.0 * widths[0]).abs() < 0.2, "{widths:?}");
    }
}
