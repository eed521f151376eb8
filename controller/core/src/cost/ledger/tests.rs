//! Law 14 and the numbers that people will check by hand.

use super::*;
use crate::cost::bill::{Dimension, IDLE, SYSTEM, to_cents};
use crate::cost::cloud::Cloud;
use crate::cost::prices::Prices;
use crate::cost::usage::Rent;
use crate::job::{Class, Resources};
use proptest::prelude::*;
use rackwright_wire::id::{AttemptNo, JobId, PodKey, TaskIndex};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};

const GIB: u64 = 1 << 30;
const HOUR: u64 = 3_600_000;

fn prices() -> Prices {
    Prices::parse(include_str!("../../../../../inventory/prices.toml")).unwrap()
}

fn room(cpu: u64, gib: u64, gpu: u64) -> Room {
    Room {
        cpu: MilliCpu::new(cpu).unwrap(),
        memory: Bytes::new(gib * GIB).unwrap(),
        gpu: MilliGpu::new(gpu).unwrap(),
    }
}

fn server(name: &str, monthly: &str, all: Room, for_jobs: Room) -> RackServer {
    let monthly: Money = monthly.parse().unwrap();
    let setup = Money::new(0, monthly.currency());
    let rent = Rent { monthly, setup, term_months: 1, since: None, source: "contract".to_owned() };
    RackServer { name: name.parse().unwrap(), rent, room: all, for_jobs }
}

fn row(node: &str, team: &str, held: (u64, u64), room: Room) -> UsageRow {
    UsageRow {
        pod: PodKey { job: JobId::new(held.0 % 7).unwrap(), task: TaskIndex(0), attempt: AttemptNo(1) },
        owner: "ann".parse().unwrap(),
        team: team.parse().unwrap(),
        project: "vision".parse().unwrap(),
        model: None,
        datasets: vec!["packages".parse().unwrap()],
        class: Class::Flexible,
        node: node.parse().unwrap(),
        from_ms: held.0,
        until_ms: held.1,
        resources: Resources { cpu: room.cpu, memory: room.memory, gpu: room.gpu, gpu_type: None },
        outcome: None,
    }
}

const fn window(until_ms: u64) -> Window {
    Window { from_ms: 0, until_ms }
}

#[test]
fn half_a_server_for_half_the_time_costs_a_quarter_of_it() {
    let all = room(4000, 8, 0);
    let servers = [server("ml1", "730 EUR", all, all)];
    let usage = vec![row("ml1", "red", (0, HOUR), room(2000, 4, 0))];
    let ledger = Ledger::build(window(2 * HOUR), &servers, usage, &prices().split).unwrap();
    assert_eq!(ledger.invoiced().to_string(), "2.00 EUR");
    // Each of the three components rounds by less than a micro-unit.
    let close = |entry: usize, micros: i64| (ledger.entries[entry].amount.micros() - micros).abs() <= 3;
    assert!(close(0, 500_000) && close(1, 1_500_000) && close(2, 0), "{:?}", ledger.entries);
}

#[test]
fn a_server_that_runs_no_jobs_is_the_system_and_not_idle() {
    let servers = [server("ctl", "73 EUR", room(2000, 4, 0), Room::default())];
    let ledger = Ledger::build(window(HOUR), &servers, Vec::new(), &prices().split).unwrap();
    let bill = ledger.bill(&[Dimension::Team, Dimension::Project]);
    let lines: Vec<(&str, String)> =
        bill.iter().map(|line| (line.key[0].as_str(), line.amount.to_string())).collect();
    assert_eq!(lines, [(IDLE, "0.00 EUR".to_owned()), (SYSTEM, "0.10 EUR".to_owned())]);
}

#[test]
fn a_gpu_job_pays_for_the_gpu_and_its_neighbour_does_not() {
    let all = room(8000, 32, 1000);
    let servers = [server("gpu1", "730 EUR", all, all)];
    let usage = vec![
        row("gpu1", "red", (0, HOUR), room(1000, 4, 1000)),
        row("gpu1", "blue", (0, HOUR), room(1000, 4, 0)),
    ];
    let ledger = Ledger::build(window(HOUR), &servers, usage, &prices().split).unwrap();
    let (red, blue) = (&ledger.entries[0], &ledger.entries[1]);
    assert_eq!((red.cpu, red.memory), (blue.cpu, blue.memory));
    assert!(red.gpu.micros() > 500_000 && blue.gpu.micros() == 0, "{red:?}");
}

#[test]
fn the_setup_fee_is_spread_over_the_term_and_the_rent_starts_with_the_contract() {
    let mut server = server("ml1", "73 EUR", room(1000, 1, 0), room(1000, 1, 0));
    server.rent.setup = "31 EUR".parse().unwrap();
    server.rent.since = Some(Date::constant(2026, 1, 1));
    let start = day_ms(Date::constant(2026, 1, 1));
    let bill = |from_ms, until_ms| {
        let window = Window { from_ms, until_ms };
        Ledger::build(window, std::slice::from_ref(&server), Vec::new(), &prices().split).unwrap().invoiced()
    };
    let day = 24 * HOUR;
    assert_eq!(bill(start - day, start).to_string(), "0.00 EUR");
    assert_eq!(bill(start, start + day).to_string(), "3.40 EUR");
    assert_eq!(bill(start + 40 * day, start + 41 * day).to_string(), "2.40 EUR");
}

#[test]
fn what_cannot_be_billed_is_refused_with_its_reason() {
    let all = room(1000, 1, 0);
    let servers = [server("a", "1 EUR", all, all), server("b", "1 USD", all, all)];
    let rates = prices().split;
    let error = |window, servers: &[RackServer], usage| {
        Ledger::build(window, servers, usage, &rates).unwrap_err().to_string()
    };
    assert!(error(window(1), &servers, Vec::new()).starts_with("bill b in USD"));
    let one = servers.get(..1).unwrap();
    assert_eq!(error(window(0), one, Vec::new()), "bill a window that ends before it starts");
    let stray = vec![row("gone", "red", (0, 1), all)];
    assert_eq!(error(window(1), one, stray), "price what ran on gone, which the inventory does not have");
    assert_eq!(error(window(1), &[], Vec::new()), "bill a rack without servers");
}

#[test]
fn the_cloud_takes_the_cheapest_shape_by_the_second_and_at_least_a_minute() {
    let usage = vec![
        row("ml1", "red", (0, 10_000), room(500, 1, 0)),
        row("ml1", "red", (0, 1_800_500), room(2000, 5, 0)),
        row("ml1", "red", (0, HOUR), room(1000, 1, 100)),
        row("ml1", "red", (0, HOUR), room(900_000, 1, 0)),
    ];
    let on = Date::constant(2026, 11, 1);
    let cloud = Cloud::price(window(HOUR), &usage, &prices(), on, "EUR".parse().unwrap()).unwrap();
    let micros: Vec<Option<i64>> = cloud.attempts.iter().map(|price| price.map(Money::micros)).collect();
    // c6a.large for 60 s, m6a.large for 1801 s, g4dn.xlarge for an hour, nothing so large.
    assert_eq!(micros, [Some(1275), Some(43_224), Some(526_000), None]);
    assert_eq!(cloud.unpriced.len(), 1);
    assert_eq!(cloud.total.micros(), 570_499);
    assert!(cloud.converted.is_some_and(|eur| eur.micros() == 512_440), "{:?}", cloud.converted);
}

fn any_room() -> impl Strategy<Value = Room> {
    (0_u64..64_000, 0_u64..256, 0_u64..8_000).prop_map(|(cpu, gib, gpu)| room(cpu, gib, gpu))
}

fn any_server(index: usize) -> impl Strategy<Value = RackServer> {
    (0_i64..3_000_000_000, any_room(), 0_u64..=100).prop_map(move |(micros, all, percent)| {
        let part = |value: u64| value * percent / 100;
        let for_jobs = Room {
            cpu: MilliCpu::new(part(all.cpu.get())).unwrap(),
            memory: Bytes::new(part(all.memory.get())).unwrap(),
            gpu: MilliGpu::new(part(all.gpu.get())).unwrap(),
        };
        let mut server = server(&format!("s{index}"), "0 EUR", all, for_jobs);
        server.rent.monthly = Money::new(micros, "EUR".parse().unwrap());
        server
    })
}

fn any_usage() -> impl Strategy<Value = Vec<UsageRow>> {
    let one = (0_usize..3, 0_u64..40 * HOUR, 0_u64..20 * HOUR, any_room(), "[a-d]", "[a-c]", 0_u8..3);
    let one = one.prop_map(|(server, from, length, room, team, project, labels)| {
        let mut row = row(&format!("s{server}"), &team, (from, from + length), room);
        row.project = project.parse().unwrap();
        row.owner = team.parse().unwrap();
        row.model = (labels > 0).then(|| "resnet".parse().unwrap());
        row.class = if labels > 1 { Class::Fixed } else { Class::Flexible };
        row.datasets.truncate(usize::from(labels > 1));
        row
    });
    proptest::collection::vec(one, 0..40)
}

proptest! {
    /// Law 14.
    #[test]
    fn every_grouping_of_the_ledger_sums_to_the_invoices(
        servers in (any_server(0), any_server(1), any_server(2)),
        usage in any_usage(),
        from_ms in 0_u64..30 * HOUR,
        length in 1_u64..30 * HOUR,
    ) {
        let servers = [servers.0, servers.1, servers.2];
        let window = Window { from_ms, until_ms: from_ms + length };
        let ledger = Ledger::build(window, &servers, usage, &prices().split).unwrap();
        prop_assert_eq!(ledger.sum(), ledger.invoiced());
        for invoice in &ledger.invoices {
            let of_server = ledger.entries.iter().filter(|entry| entry.server == invoice.server);
            prop_assert_eq!(of_server.map(|entry| entry.amount.micros()).sum::<i64>(), invoice.amount.micros());
        }
        for entry in &ledger.entries {
            let parts = [entry.cpu.micros(), entry.memory.micros(), entry.gpu.micros()];
            prop_assert!(parts.iter().all(|part| *part >= 0), "{:?}", entry);
            prop_assert_eq!(parts.iter().sum::<i64>(), entry.amount.micros());
        }
        let mut groupings: Vec<Vec<Dimension>> = Dimension::ALL.iter().map(|one| vec![*one]).collect();
        groupings.push(vec![Dimension::Team, Dimension::Project]);
        groupings.push(Dimension::ALL.to_vec());
        groupings.push(Vec::new());
        for by in groupings {
            let lines = ledger.bill(&by);
            let sum: i64 = lines.iter().map(|line| line.amount.micros()).sum();
            prop_assert_eq!(sum, ledger.invoiced().micros(), "{:?}", by);
            let amounts: Vec<Money> = lines.iter().map(|line| line.amount).collect();
            let cents: i64 = to_cents(&amounts).iter().map(|money| money.micros()).sum();
            prop_assert_eq!(cents, (ledger.invoiced().micros() + 5_000) / 10_000 * 10_000);
        }
    }
}
