//! `rackwright cost`: what the rack cost, who it was for, and what the cloud would have cost.

use crate::client::Client;
use crate::out::Out;
use crate::report::Report;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rackwright_core::cost::bill::{cloud_by, to_cents};
use rackwright_core::cost::rack::{self, Beside};
use rackwright_core::cost::{Cloud, Dimension, Ledger, Prices, Room, Window};
use rackwright_core::inventory::Inventory;
use rackwright_serve::api::{NodeList, UsageList};
use rackwright_wire::units::{Currency, Money};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The version of a bill as JSON.
const BILL_VERSION: u32 = 1;

/// Money.
#[derive(Debug, Args)]
pub(crate) struct CostCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Split the rack's rent over jobs, idle room and the system. Needs an operator's token.
    Bill(BillArgs),
}

#[derive(Debug, Args)]
struct BillArgs {
    /// The inventory, with the contracts.
    #[arg(
        short = 'i',
        long,
        value_name = "FILE",
        default_value = "inventory/lab.toml",
        env = "RACKWRIGHT_INVENTORY"
    )]
    inventory: PathBuf,
    /// Dated prices.
    #[arg(long, value_name = "FILE", default_value = "inventory/prices.toml")]
    prices: PathBuf,
    /// From when, such as 2026-01-31T00:00:00Z or milliseconds since the epoch [default: this month's start].
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Until when [default: now].
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Group by these.
    #[arg(long, value_delimiter = ',', default_value = "team,project")]
    by: Vec<Dimension>,
    /// The shape of a server that has no contract, as it stands in the prices.
    #[arg(long = "shape", value_name = "SERVER=SHAPE")]
    shapes: Vec<String>,
    /// Use a saved answer of /v1/usage instead of asking the controller.
    #[arg(long, value_name = "FILE", requires = "nodes")]
    usage: Option<PathBuf>,
    /// Use a saved answer of /v1/nodes instead of asking the controller.
    #[arg(long, value_name = "FILE", requires = "usage")]
    nodes: Option<PathBuf>,
}

/// A bill that cannot be made; reads after "failed to".
#[derive(Debug, thiserror::Error)]
enum BillError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("understand {}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("accept the inventory:\n{0}")]
    Inventory(String),
    #[error("understand --shape {0}")]
    Shape(String),
    #[error("price attempts on {0}, because no EC2 price is that old")]
    NoCloudPrice(Date),
    #[error("see more than team {0}'s usage")]
    OneTeam(String),
    #[error("tell the time")]
    Clock(#[source] jiff::Error),
}

/// Runs `rackwright cost`.
pub(crate) async fn run(command: CostCommand, out: Out) -> Result<ExitCode, Report> {
    match command.action {
        Action::Bill(args) => bill(args, out).await,
    }
}

async fn bill(args: BillArgs, out: Out) -> Result<ExitCode, Report> {
    let inventory = inventory(&args.inventory)?;
    let prices = Prices::parse(&read(&args.prices)?).map_err(|error| {
        Report::new(error).help(format!("mend {}", args.prices.display())).exit(Report::BAD_INPUT)
    })?;
    let shapes = args.shapes.iter().map(|pair| match pair.split_once('=') {
        Some((server, shape)) => Ok((server.to_owned(), shape.to_owned())),
        None => Err(Report::new(BillError::Shape(pair.clone()))
            .help("write it ml1=hetzner/gex44")
            .exit(Report::BAD_INPUT)),
    });
    let shapes = shapes.collect::<Result<_, _>>()?;
    let (usage, nodes) = answers(&args).await?;
    let window = Window { from_ms: usage.from_ms, until_ms: usage.until_ms };
    let on = day(window.until_ms)?;
    let allocatable = nodes.nodes.into_iter().map(|node| {
        let has = node.allocatable;
        (node.name, Room { cpu: has.cpu, memory: has.memory, gpu: has.gpu })
    });
    let beside = Beside { allocatable: allocatable.collect(), shapes };
    let rack = rack::servers(&inventory, &prices, &beside, on).map_err(|error| {
        Report::new(error)
            .help("add `contract` to the server, or say --shape SERVER=SHAPE")
            .exit(Report::BAD_INPUT)
    })?;
    let ledger = Ledger::build(window, &rack, usage.rows, &prices.split)
        .map_err(|error| Report::new(error).exit(Report::BAD_INPUT))?;
    let cloud = Cloud::price(window, &ledger.usage, &prices, on, ledger.currency())
        .ok_or_else(|| Report::new(BillError::NoCloudPrice(on)).help("add a row to the prices"))?;
    let bill = Bill { ledger: &ledger, cloud: &cloud, prices: &prices, by: &args.by, on };
    if out.is_json() {
        out.json_line(&bill.json());
    } else {
        out.line(bill.text());
    }
    Ok(ExitCode::SUCCESS)
}

/// Usage and nodes, from the controller or from files.
async fn answers(args: &BillArgs) -> Result<(UsageList, NodeList), Report> {
    if let (Some(usage), Some(nodes)) = (&args.usage, &args.nodes) {
        return Ok((json_file(usage)?, json_file(nodes)?));
    }
    let client = Client::from_env()?;
    let from = match &args.from {
        Some(from) => from.clone(),
        None => month_start()?,
    };
    let to = args.to.as_ref().map(|to| format!("&to={}", encoded(to))).unwrap_or_default();
    let usage: UsageList = client.get(&format!("/v1/usage?from={}{to}", encoded(&from))).await?;
    if let Some(team) = &usage.team {
        return Err(Report::new(BillError::OneTeam(team.to_string()))
            .help("use an operator's token: the rest would be billed as idle")
            .exit(Report::BAD_INPUT));
    }
    Ok((usage, client.get("/v1/nodes").await?))
}

/// A time in a query: the one sign of RFC 3339 that means something else there is the plus.
fn encoded(time: &str) -> String {
    time.replace('+', "%2B")
}

fn month_start() -> Result<String, Report> {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    let start = now.first_of_month().and_then(|day| day.start_of_day()).map_err(BillError::Clock)?;
    Ok(start.timestamp().to_string())
}

fn day(ms: u64) -> Result<Date, Report> {
    let at = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX)).map_err(BillError::Clock)?;
    Ok(at.to_zoned(TimeZone::UTC).date())
}

fn inventory(path: &Path) -> Result<Inventory, Report> {
    Inventory::parse(&path.display().to_string(), &read(path)?).map_err(|findings| {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        Report::new(BillError::Inventory(lines.join("\n"))).exit(Report::BAD_INPUT)
    })
}

fn json_file<T: DeserializeOwned>(path: &Path) -> Result<T, Report> {
    let json = |source| BillError::Json { path: path.to_owned(), source };
    serde_json::from_str(&read(path)?).map_err(|cause| Report::new(json(cause)).exit(Report::BAD_INPUT))
}

fn read(path: &Path) -> Result<String, Report> {
    let unread = |source| BillError::Read { path: path.to_owned(), source };
    std::fs::read_to_string(path).map_err(|cause| Report::new(unread(cause)).exit(Report::BAD_INPUT))
}

/// A finished bill, ready to be shown.
struct Bill<'a> {
    ledger: &'a Ledger,
    cloud: &'a Cloud,
    prices: &'a Prices,
    by: &'a [Dimension],
    on: Date,
}

impl Bill<'_> {
    /// One document; amounts are decimal texts in `currency`, exact to the micro-unit.
    fn json(&self) -> Value {
        let cloud_by = cloud_by(self.by, &self.ledger.usage, self.cloud);
        let rows = self.ledger.bill(self.by).into_iter().map(|line| {
            let mut row: serde_json::Map<String, Value> =
                self.by.iter().zip(&line.key).map(|(by, key)| (by.to_string(), json!(key))).collect();
            row.insert("amount".to_owned(), json!(number(line.amount)));
            row.insert("attempts".to_owned(), json!(line.attempts));
            let cloud =
                cloud_by.get(&line.key).copied().flatten().map(|cloud| number(self.in_currency(cloud)));
            row.insert("cloud".to_owned(), json!(cloud));
            Value::Object(row)
        });
        let invoices = self.ledger.invoices.iter().map(|invoice| {
            let hours = number(hours(invoice.paid_ms, self.ledger.currency()));
            json!({ "server": invoice.server, "amount": number(invoice.amount), "hours": hours, "source": invoice.source })
        });
        json!({
            "version": BILL_VERSION,
            "from_ms": self.ledger.window.from_ms,
            "until_ms": self.ledger.window.until_ms,
            "currency": self.ledger.currency().to_string(),
            "invoice": number(self.ledger.invoiced()),
            "sum": number(self.ledger.sum()),
            "rows": rows.collect::<Vec<_>>(),
            "invoices": invoices.collect::<Vec<_>>(),
            "cloud": number(self.cloud.converted.unwrap_or(self.cloud.total)),
            "cloud_currency": self.cloud.converted.unwrap_or(self.cloud.total).currency().to_string(),
            "cloud_shapes": self.cloud.shapes,
            "cloud_seconds": self.cloud.seconds,
            "cloud_unpriced": self.cloud.unpriced,
        })
    }

    /// A table; in cents when the invoice is large enough for cents to say something.
    fn text(&self) -> String {
        let lines = self.ledger.bill(self.by);
        let amounts: Vec<Money> = lines.iter().map(|line| line.amount).collect();
        let whole = self.ledger.invoiced().micros() >= 100_000_000;
        let amounts = if whole { to_cents(&amounts) } else { amounts };
        let cloud_by = cloud_by(self.by, &self.ledger.usage, self.cloud);
        let mut text = String::new();
        let head: Vec<String> = self.by.iter().map(|by| format!("{by:<16}")).collect();
        let currency = self.ledger.currency();
        let _ok = writeln!(
            text,
            "{} {:>14} {currency} {:>9} {:>16}",
            head.join(" "),
            "amount",
            "attempts",
            "on EC2"
        );
        for (line, amount) in lines.iter().zip(&amounts) {
            let key: Vec<String> = line.key.iter().map(|key| format!("{key:<16}")).collect();
            let cloud = match cloud_by.get(&line.key) {
                Some(Some(cloud)) => number(self.in_currency(*cloud)),
                Some(None) => "no shape fits".to_owned(),
                None => "-".to_owned(),
            };
            let _ok = writeln!(
                text,
                "{} {:>14}     {:>9} {cloud:>16}",
                key.join(" "),
                number(*amount),
                line.attempts
            );
        }
        let (invoiced, sum) = (self.ledger.invoiced(), self.ledger.sum());
        let _ok = writeln!(text, "sum of the lines {sum}, invoices {invoiced}:");
        for invoice in &self.ledger.invoices {
            let hours = number(hours(invoice.paid_ms, currency));
            let _ok = writeln!(
                text,
                "  {:<16} {} for {hours} h, {}",
                invoice.server, invoice.amount, invoice.source
            );
        }
        let _ok = write!(text, "{}", self.cloud_text());
        text
    }

    fn cloud_text(&self) -> String {
        let shapes: Vec<String> =
            self.cloud.shapes.iter().map(|(shape, count)| format!("{count} x {shape}")).collect();
        let converted = match self.cloud.converted {
            Some(converted) if converted.currency() != self.cloud.total.currency() => {
                format!(", {converted}")
            }
            Some(_) | None => String::new(),
        };
        let seconds = self.cloud.seconds;
        let unpriced = match self.cloud.unpriced.len() {
            0 => String::new(),
            count => format!("; {count} attempts fit no shape and are not in it"),
        };
        let total = self.cloud.total;
        format!(
            "the same attempts on EC2 on demand at the prices of {}: {total}{converted} for {seconds} instance seconds \
             ({}){unpriced}",
            self.on,
            shapes.join(", ")
        )
    }

    fn in_currency(&self, cloud: Money) -> Money {
        self.prices.convert(cloud, self.ledger.currency(), self.on).unwrap_or(cloud)
    }
}

/// An amount without its currency.
fn number(money: Money) -> String {
    let text = money.to_string();
    text.split_once(' ').map_or(text.clone(), |(number, _)| number.to_owned())
}

/// Hours with the decimals of money: both are shown as exact decimals.
fn hours(ms: u64, currency: Currency) -> Money {
    Money::new(i64::try_from(ms.saturating_mul(1000) / 3600).unwrap_or(i64::MAX), currency)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn bill_of(rows: &str) -> (Ledger, Cloud, Prices) {
        let file = |name: &str| {
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../inventory").join(name))
                .unwrap()
        };
        let inventory = Inventory::parse("lab.toml", &file("lab.toml")).unwrap();
        let prices = Prices::parse(&file("prices.toml")).unwrap();
        let room = Room {
            cpu: "1200m".parse().unwrap(),
            memory: "2GiB".parse().unwrap(),
            gpu: "0".parse().unwrap(),
        };
        let allocatable = ["ml1", "ml2"].map(|name| (name.parse().unwrap(), room)).into();
        let beside = Beside { allocatable, shapes: std::collections::BTreeMap::new() };
        let on = Date::constant(2026, 11, 22);
        let rack = rack::servers(&inventory, &prices, &beside, on).unwrap();
        let from_ms = 1_795_000_000_000;
        let window = Window { from_ms, until_ms: from_ms + HOUR_MS };
        let ledger =
            Ledger::build(window, &rack, serde_json::from_str(rows).unwrap(), &prices.split).unwrap();
        let cloud = Cloud::price(window, &ledger.usage, &prices, on, ledger.currency()).unwrap();
        (ledger, cloud, prices)
    }

    const ROWS: &str = r#"[
        {"pod": "PODA", "owner": "ann", "team": "red", "project": "vision", "class": "flexible", "node": "ml1",
         "from_ms": 1795000000000, "until_ms": 1795001800000, "resources": {"cpu": "500m", "memory": "512MiB"}},
        {"pod": "PODB", "owner": "bob", "team": "blue", "project": "default", "class": "flexible", "node": "ml2",
         "from_ms": 1794990000000, "until_ms": 1795000030000, "resources": {"cpu": "1", "memory": "1GiB"}}
    ]"#;

    fn rows() -> String {
        use rackwright_wire::id::{AttemptNo, JobId, PodKey, TaskIndex};
        let pod = |job| {
            let key = PodKey { job: JobId::new(job).unwrap(), task: TaskIndex(0), attempt: AttemptNo(1) };
            serde_json::to_string(&key).unwrap()
        };
        ROWS.replace("\"PODA\"", &pod(1)).replace("\"PODB\"", &pod(2))
    }

    #[test]
    fn the_rows_of_the_document_sum_to_its_invoice() {
        let (ledger, cloud, prices) = bill_of(&rows());
        let by = [Dimension::Team, Dimension::Project];
        let bill = Bill {
            ledger: &ledger,
            cloud: &cloud,
            prices: &prices,
            by: &by,
            on: Date::constant(2026, 11, 22),
        };
        let document = bill.json();
        let micros =
            |value: &Value| format!("{} EUR", value.as_str().unwrap()).parse::<Money>().unwrap().micros();
        let rows = document["rows"].as_array().unwrap();
        let sum: i64 = rows.iter().map(|row| micros(&row["amount"])).sum();
        assert_eq!(sum, micros(&document["invoice"]));
        assert_eq!(document["invoice"], document["sum"]);
        let teams: Vec<&str> = rows.iter().map(|row| row["team"].as_str().unwrap()).collect();
        assert_eq!(teams, ["blue", "red", "(idle)", "(system)"]);
        // Half an hour of c6a.large, and the 30 s that lie in the window as a whole minute.
        assert_eq!(document["cloud_seconds"], 1860);
        assert_eq!(document["cloud_shapes"]["c6a.large"], 2);
        insta::assert_snapshot!(serde_json::to_string_pretty(&document).unwrap());
    }

    #[test]
    fn the_table_names_every_line_the_sum_and_the_cloud() {
        let (ledger, cloud, prices) = bill_of(&rows());
        let by = [Dimension::Team];
        let bill = Bill {
            ledger: &ledger,
            cloud: &cloud,
            prices: &prices,
            by: &by,
            on: Date::constant(2026, 11, 22),
        };
        let text = bill.text();
        for part in [
            "red",
            "(idle)",
            "(system)",
            "sum of the lines",
            "for 1.00 h",
            "c6a.large",
            "EUR for 1860 instance",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
