//! The reckoning of `cost`: from what was measured of an app, prices and a rate of requests to dollars a month.
//! Pure. Requests come evenly; so at a given rate each finds the app in the same state.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const GIB: f64 = (1u64 << 30) as f64;
const GB: f64 = 1e9;
const DAY: f64 = 86_400.0;

/// What a swap of an app takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The app.
    pub name: String,
    /// Of all layers.
    pub checkpoint_bytes: f64,
    /// While it is hot.
    pub memory_bytes: f64,
    /// Requests to the store of a cold wake.
    pub gets: f64,
    /// Requests to the store of a swap-out.
    pub puts: f64,
    /// A wake and a swap-out together. A processor is charged for all of it: an upper bound.
    pub swap_seconds: f64,
    /// A hot request.
    pub request_seconds: f64,
}

impl Measured {
    /// The same app with another size of checkpoint and as much more memory.
    #[must_use]
    pub fn scaled(&self, checkpoint_bytes: f64) -> Measured {
        Measured {
            checkpoint_bytes,
            memory_bytes: (self.memory_bytes + checkpoint_bytes - self.checkpoint_bytes).max(0.0),
            ..self.clone()
        }
    }
}

/// A way to run an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Here: asleep between requests.
    Picocenter,
    /// Always on, on a share of the same hosts.
    Shared,
    /// Always on, on the smallest instance that holds it.
    Instance,
    /// Rewritten as a function.
    Functions,
}

impl Way {
    /// In the order of reports.
    pub const ALL: [Way; 4] = [Way::Picocenter, Way::Shared, Way::Instance, Way::Functions];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Way::Picocenter => "asleep between",
            Way::Shared => "share of a host",
            Way::Instance => "own instance",
            Way::Functions => "functions",
        }
    }
}

/// tests/prices.toml.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    object_store: ObjectStore,
    host: Host,
    instance: Instance,
    functions: Functions,
    /// What else is reckoned with.
    pub assumptions: Assumptions,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectStore {
    source: String,
    gb_month: f64,
    put: f64,
    get: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    source: String,
    name: String,
    hour: f64,
    processors: f64,
    memory_gib: f64,
    disk_gb_month: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Instance {
    source: String,
    sizes: Vec<Size>,
    disk_gb: f64,
    disk_gb_month: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    name: String,
    memory_gib: f64,
    hour: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Functions {
    source: String,
    request: f64,
    gb_second: f64,
    smallest_gb: f64,
}

/// `[assumptions]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumptions {
    idle_seconds: f64,
    cold_after_seconds: f64,
    host_filled: f64,
    month_hours: f64,
    /// Rates that are reckoned.
    pub requests_per_day: Vec<f64>,
    /// Sizes that are reckoned.
    pub checkpoint_mib: Vec<f64>,
}

impl Prices {
    /// Reads tests/prices.toml.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(text: &str) -> Result<Prices> {
        let prices: Prices = toml::from_str(text).context("tests/prices.toml is malformed")?;
        let filled = prices.assumptions.host_filled;
        ensure!(
            filled > 0.0 && filled <= 1.0,
            "host_filled is a share: above 0, at most 1"
        );
        ensure!(!prices.instance.sizes.is_empty(), "[instance] has no sizes");
        Ok(prices)
    }

    /// Where the prices are from, and what they buy.
    pub fn notes(&self) -> Vec<String> {
        let sizes: Vec<&str> = self
            .instance
            .sizes
            .iter()
            .map(|size| size.name.as_str())
            .collect();
        vec![
            format!("Object store: {}.", self.object_store.source),
            format!("Hosts ({}): {}.", self.host.name, self.host.source),
            format!("Instances ({}): {}.", sizes.join(", "), self.instance.source),
            format!("Functions: {}.", self.functions.source),
        ]
    }

    /// Dollars a month.
    pub fn month(&self, app: &Measured, way: Way, requests_per_day: f64) -> f64 {
        match way {
            Way::Picocenter => self.asleep_between(app, requests_per_day),
            Way::Shared => self.share(app.memory_bytes, 0.0) + self.disk(app.checkpoint_bytes),
            Way::Instance => self.own_instance(app),
            Way::Functions => self.functions(app, requests_per_day),
        }
    }

    fn asleep_between(&self, app: &Measured, requests_per_day: f64) -> f64 {
        let (assumed, store) = (&self.assumptions, &self.object_store);
        let gap = DAY / requests_per_day;
        let hot = (assumed.idle_seconds / gap).min(1.0);
        let warm = ((gap - assumed.idle_seconds) / gap).clamp(0.0, assumed.cold_after_seconds / gap);
        let stored = app.checkpoint_bytes / GB * store.gb_month;
        if hot >= 1.0 {
            // It never sleeps: no swaps; its last checkpoint stays.
            return self.share(app.memory_bytes, 0.0) + self.disk(app.checkpoint_bytes) + stored;
        }
        let swaps = requests_per_day * assumed.month_hours / 24.0;
        let cold = gap > assumed.idle_seconds + assumed.cold_after_seconds;
        let requests = swaps * (app.puts * store.put + if cold { app.gets * store.get } else { 0.0 });
        let processors = app.swap_seconds / gap;
        let disk = (hot + warm) * self.disk(app.checkpoint_bytes);
        self.share(hot * app.memory_bytes, processors) + disk + stored + requests
    }

    /// A share of a host: of its memory or of its processors, whichever is more.
    fn share(&self, memory_bytes: f64, processors: f64) -> f64 {
        let share = (memory_bytes / (self.host.memory_gib * GIB)).max(processors / self.host.processors);
        share / self.assumptions.host_filled * self.host.hour * self.assumptions.month_hours
    }

    fn disk(&self, bytes: f64) -> f64 {
        bytes / GB * self.host.disk_gb_month
    }

    /// The smallest that holds the app; of one that none holds, the largest.
    fn own_instance(&self, app: &Measured) -> f64 {
        let (instance, needed) = (&self.instance, app.memory_bytes / GIB);
        let fits = instance.sizes.iter().find(|size| size.memory_gib >= needed);
        let hour = fits.or(instance.sizes.last()).map_or(0.0, |size| size.hour);
        hour * self.assumptions.month_hours + instance.disk_gb * instance.disk_gb_month
    }

    fn functions(&self, app: &Measured, requests_per_day: f64) -> f64 {
        let functions = &self.functions;
        let size = (app.memory_bytes / GIB).max(functions.smallest_gb);
        // Billed by the millisecond.
        let seconds = (app.request_seconds * 1e3).ceil() / 1e3;
        let each = functions.request + seconds * size * functions.gb_second;
        requests_per_day * self.assumptions.month_hours / 24.0 * each
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> Measured {
        Measured {
            name: "app".into(),
            checkpoint_bytes: 64e6,
            memory_bytes: 64e6,
            gets: 20.0,
            puts: 5.0,
            swap_seconds: 0.5,
            request_seconds: 0.001,
        }
    }

    fn prices() -> Result<Prices> {
        Prices::parse(super::super::FILE)
    }

    #[test]
    fn more_requests_never_cost_less_until_the_app_stays_hot() -> Result<()> {
        let prices = prices()?;
        let rates = [0.1, 1.0, 10.0, 100.0, 200.0];
        let month = rates.map(|rate| prices.month(&app(), Way::Picocenter, rate));
        assert!(month.is_sorted(), "{month:?}");
        Ok(())
    }

    #[test]
    fn an_app_that_never_sleeps_costs_its_share_of_a_host_and_its_checkpoint() -> Result<()> {
        let prices = prices()?;
        let hot = prices.month(&app(), Way::Picocenter, 1e5);
        let shared = prices.month(&app(), Way::Shared, 1e5);
        let stored = 0.064 * prices.object_store.gb_month;
        assert!((hot - shared - stored).abs() < 1e-9, "{hot} {shared}");
        Ok(())
    }

    #[test]
    fn one_request_a_day_costs_what_can_be_reckoned_by_hand() -> Result<()> {
        let prices = prices()?;
        let swaps = 730.0 / 24.0;
        let requests = swaps * (5.0 * 0.000_005 + 20.0 * 0.000_000_4);
        let memory = 60.0 / 86_400.0 * 64e6 / (8.0 * GIB) / 0.7 * 0.096 * 730.0;
        let disk = 360.0 / 86_400.0 * 0.064 * 0.08;
        let expected = requests + memory + disk + 0.064 * 0.023;
        let month = prices.month(&app(), Way::Picocenter, 1.0);
        assert!((month - expected).abs() < 1e-9, "{month} {expected}");
        Ok(())
    }

    #[test]
    fn an_app_gets_the_smallest_instance_that_holds_it() -> Result<()> {
        let prices = prices()?;
        let small = prices.month(&app(), Way::Instance, 1.0);
        let large = prices.month(&app().scaled(700e6), Way::Instance, 1.0);
        assert!((small - (0.0042 * 730.0 + 0.64)).abs() < 1e-9, "{small}");
        assert!((large - (0.0084 * 730.0 + 0.64)).abs() < 1e-9, "{large}");
        Ok(())
    }

    #[test]
    fn shares_that_are_none_are_refused() {
        let text = super::super::FILE.replace("host_filled = 0.7", "host_filled = 0.0");
        assert!(Prices::parse(&text).is_err());
    }
}
