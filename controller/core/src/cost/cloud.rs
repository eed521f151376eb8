//! What the same attempts would have cost on EC2, on demand.
//!
//! Each attempt as it ran: the cheapest shape that fits its request, alone on its instance, by the second with a
//! minimum of 60. Not in it, so the cloud looks cheaper than it is: boot time, storage, traffic, and what stands idle
//! between attempts; not in it either, so it looks dearer: packing several attempts on one instance, spot and terms.

use super::prices::{Ec2Price, Prices};
use super::split::share;
use super::usage::{UsageRow, Window};
use jiff::civil::Date;
use rackwright_wire::id::PodKey;
use rackwright_wire::units::{Currency, Money};
use serde::Serialize;
use std::collections::BTreeMap;

/// EC2 bills Linux instances by the second, and never less than a minute.
const MINIMUM_S: u64 = 60;

/// What the cloud would have cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cloud {
    /// In the prices' currency.
    pub total: Money,
    /// In the bill's currency, where there is an exchange rate.
    pub converted: Option<Money>,
    /// Attempts by shape.
    pub shapes: BTreeMap<String, u64>,
    /// Billed instance seconds.
    pub seconds: u64,
    /// Attempts that no shape fits; they are in no total.
    pub unpriced: Vec<PodKey>,
    /// The price of each attempt, in the order of the usage.
    #[serde(skip)]
    pub attempts: Vec<Option<Money>>,
}

impl Cloud {
    /// Prices attempts within a window. `None` when no shape has a price on that day.
    pub fn price(
        window: Window,
        usage: &[UsageRow],
        prices: &Prices,
        on: Date,
        currency: Currency,
    ) -> Option<Self> {
        let shapes = prices.ec2_on(on);
        let cloud_currency = shapes.first()?.hourly.currency();
        let zero = Money::new(0, cloud_currency);
        let (total, converted) = (zero, None);
        let mut cloud = Self {
            total,
            converted,
            shapes: BTreeMap::new(),
            seconds: 0,
            unpriced: Vec::new(),
            attempts: Vec::new(),
        };
        for row in usage {
            let held_ms = row.held().overlap(window).length_ms();
            if held_ms == 0 {
                cloud.attempts.push(Some(zero));
                continue;
            }
            let Some(shape) =
                cheapest(&shapes, row).filter(|shape| shape.hourly.currency() == cloud_currency)
            else {
                cloud.unpriced.push(row.pod);
                cloud.attempts.push(None);
                continue;
            };
            let seconds = held_ms.div_ceil(1000).max(MINIMUM_S);
            let hourly = u64::try_from(shape.hourly.micros()).unwrap_or_default();
            let price =
                Money::new(i64::try_from(share(hourly, seconds, 3600)).unwrap_or(i64::MAX), cloud_currency);
            *cloud.shapes.entry(shape.shape.clone()).or_default() += 1;
            cloud.seconds += seconds;
            cloud.total = cloud.total.checked_add(price).unwrap_or(cloud.total);
            cloud.attempts.push(Some(price));
        }
        cloud.converted = prices.convert(cloud.total, currency, on);
        Some(cloud)
    }
}

/// The cheapest shape that holds a request; by name among equals. A share of a GPU needs a whole one there.
pub fn cheapest<'a>(shapes: &[&'a Ec2Price], row: &UsageRow) -> Option<&'a Ec2Price> {
    let wanted = &row.resources;
    let fits = |shape: &&&Ec2Price| {
        let type_fits = match (&wanted.gpu_type, &shape.gpu_type) {
            (Some(wanted), Some(has)) => has.eq_ignore_ascii_case(wanted.as_str()),
            (Some(_), None) => wanted.gpu.is_zero(),
            (None, _) => true,
        };
        let gpus = wanted.gpu.get().div_ceil(1000) * 1000;
        shape.cpu >= wanted.cpu && shape.memory >= wanted.memory && shape.gpu.get() >= gpus && type_fits
    };
    shapes
        .iter()
        .filter(fits)
        .min_by(|a, b| (a.hourly.micros(), &a.shape).cmp(&(b.hourly.micros(), &b.shape)))
        .copied()
}
