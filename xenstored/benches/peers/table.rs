//! The figures: metric by metric, daemon by daemon, round by round.

use std::fmt::Write;

struct Metric {
    name: String,
    unit: &'static str,
    values: Vec<Vec<f64>>,
}

pub struct Table {
    labels: Vec<String>,
    metrics: Vec<Metric>,
}

impl Table {
    pub fn new(labels: Vec<String>) -> Self {
        Self { labels, metrics: Vec::new() }
    }

    pub fn add(&mut self, peer: usize, name: &str, unit: &'static str, value: f64) {
        let at = self.metrics.iter().position(|metric| metric.name == name).unwrap_or_else(|| {
            let values = vec![Vec::new(); self.labels.len()];
            self.metrics.push(Metric { name: name.to_owned(), unit, values });
            self.metrics.len() - 1
        });
        self.metrics[at].values[peer].push(value);
    }

    /// Medians; with several peers the last column is the first one's over the second's.
    pub fn render(&self) -> String {
        let mut text = format!("{:<42} {:<8}", "median of the rounds", "unit");
        self.labels.iter().for_each(|label| write!(text, " {label:>12}").unwrap());
        text += "    ratio\n";
        for metric in &self.metrics {
            write!(text, "{:<42} {:<8}", metric.name, metric.unit).unwrap();
            let medians: Vec<_> = metric.values.iter().map(|values| median(values)).collect();
            for value in &medians {
                match value {
                    Some(value) if value.abs() < 10.0 => write!(text, " {value:>12.2}"),
                    Some(value) => write!(text, " {value:>12.0}"),
                    None => write!(text, " {:>12}", "-"),
                }
                .unwrap();
            }
            if let [Some(first), Some(second), ..] = medians[..]
                && second != 0.0
            {
                write!(text, " {:>8.2}", first / second).unwrap();
            }
            text.push('\n');
        }
        text
    }

    pub fn to_json(&self) -> String {
        let metrics = self.metrics.iter().map(|metric| {
            let peers = self
                .labels
                .iter()
                .zip(&metric.values)
                .map(|(label, values)| format!("\"{label}\": {values:?}"));
            let peers = peers.collect::<Vec<_>>().join(", ");
            format!(
                "  {{\"name\": \"{}\", \"unit\": \"{}\", \"peers\": {{{peers}}}}}",
                metric.name, metric.unit
            )
        });
        format!("[\n{}\n]\n", metrics.collect::<Vec<_>>().join(",\n"))
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some((sorted[low] + sorted[high]) / 2.0)
}
