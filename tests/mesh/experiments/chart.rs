//! Lines over time, as SVG.

use std::fmt::Write as _;

/// One diagram.
pub(super) struct Panel {
    pub(super) title: &'static str,
    /// Label and a value for each second.
    pub(super) lines: Vec<(&'static str, Vec<f64>)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 130.0;
const LEFT: f64 = 50.0;
const GAP: f64 = 50.0;
/// Readable on white, and for people who see colours differently.
const COLOURS: [&str; 3] = ["#d55e00", "#e69f00", "#0072b2"];

/// The panels below each other, with marks where phases begin, in seconds.
pub(super) fn svg(panels: &[Panel], phases: &[(usize, &str)]) -> String {
    let height = panels.len() as f64 * (HEIGHT + GAP) + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n",
        LEFT + WIDTH + 20.0
    );
    let mut put = |text: String| writeln!(out, "{text}").expect("text");
    for (index, panel) in panels.iter().enumerate() {
        let top = index as f64 * (HEIGHT + GAP) + 30.0;
        let most = panel.lines.iter().flat_map(|(_, values)| values);
        let most = most.copied().fold(1.0, f64::max);
        let seconds = panel.lines.iter().map(|(_, values)| values.len()).max();
        let step = WIDTH / (seconds.unwrap_or(1).max(2) - 1) as f64;
        put(format!(
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            top - 8.0,
            panel.title
        ));
        put(format!(
            "<path d=\"M{LEFT} {top}v{HEIGHT}h{WIDTH}\" fill=\"none\" stroke=\"#888\"/>"
        ));
        for (at, value) in [(top + 10.0, most), (top + HEIGHT, 0.0)] {
            let x = LEFT - 6.0;
            put(format!(
                "<text x=\"{x}\" y=\"{at}\" text-anchor=\"end\">{value:.0}</text>"
            ));
        }
        for (second, name) in phases {
            let x = LEFT + *second as f64 * step;
            put(format!(
                "<path d=\"M{x:.1} {top}v{HEIGHT}\" stroke=\"#ccc\" stroke-dasharray=\"3\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#666\">{name}</text>",
                x + 4.0,
                top + HEIGHT + 14.0
            ));
        }
        for ((label, values), (number, colour)) in
            panel.lines.iter().zip(COLOURS.iter().enumerate())
        {
            let points = values.iter().enumerate().map(|(second, value)| {
                let x = LEFT + second as f64 * step;
                let y = top + HEIGHT - value / most * HEIGHT;
                format!("{x:.1},{y:.1}")
            });
            let points: Vec<String> = points.collect();
            put(format!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
                points.join(" ")
            ));
            let x = LEFT + WIDTH - 330.0 + number as f64 * 110.0;
            put(format!(
                "<text x=\"{x:.0}\" y=\"{}\" fill=\"{colour}\">{label}</text>",
                top - 8.0
            ));
        }
    }
    out.push_str("</svg>\n");
    out
}
