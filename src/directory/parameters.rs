//! Consensus parameters: numbers that all nodes share (`proto/07-directory.md` §5).

use std::collections::BTreeMap;

use core::time::Duration;

use super::schema;
use crate::flow::FlowParameters;

const MAX_PARAMETERS: usize = 256;
const MAX_NAME_LEN: usize = 64;

/// Why a parameter is invalid in a consensus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// The name is invalid.
    #[error("parameter \"{0}\": not a name of 1 to 64 lower-case letters, digits, \"-\" and \".\"")]
    Name(String),
    /// There are too many parameters, or they are out of order or repeated.
    #[error("the parameters are out of order, or more than {MAX_PARAMETERS}")]
    Order,
}

/// The parameters of one consensus, by name.
///
/// Each parameter has a default for a consensus without it, and bounds to which its value is clamped. Unknown names are
/// kept and never used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    values: BTreeMap<String, u64>,
}

/// Defines the accessors: name on the wire, default, minimum, maximum.
macro_rules! parameters {
    ($($(#[$doc:meta])* $accessor:ident = $name:literal, $default:expr, $min:expr, $max:expr;)*) => {
        impl Parameters {
            $($(#[$doc])*
            #[must_use]
            pub fn $accessor(&self) -> u64 {
                self.values.get($name).copied().unwrap_or($default).clamp($min, $max)
            })*
        }

        /// Name, default, minimum and maximum of every parameter.
        #[cfg(test)]
        const TABLE: &[(&str, u64, u64, u64)] = &[$(($name, $default, $min, $max)),*];
    };
}

parameters! {
    /// DATA cells from one tag to the next.
    cells_per_tag = "flow.cells-per-mark", 32, 32, 256;
    /// Congestion window of a new circuit, in DATA cells.
    initial_window = "flow.initial-window", 128, 64, 8192;
    /// The largest congestion window, in DATA cells; shorter than a relay's queue for a circuit
    /// (`proto/02-channel.md` §7).
    largest_window = "flow.largest-window", 16_384, 512, 16_384;
    /// The queueing delay that a congestion window keeps on its path, in milliseconds.
    queue_milliseconds = "flow.queue-milliseconds", 40, 5, 500;
    /// The minimum of the queue that a congestion window keeps on its path, in cells.
    smallest_queue = "flow.smallest-queue", 16, 8, 1024;
    /// The maximum of the queue that a congestion window keeps on its path, in cells.
    largest_queue = "flow.largest-queue", 1024, 64, 8192;
    /// The largest credit of one stream, in bytes.
    stream_credit = "flow.stream-credit", 16 << 20, 128 << 10, 16 << 20;
    /// Seconds from a circuit's first use for which the circuit takes new streams.
    circuit_age = "circuit.age-seconds", 600, 10, 86_400;
    /// Guards in a client's sample.
    guard_sample = "path.guard-sample", 20, 3, 60;
    /// Usable guards at the head of the sample, one of which a client uses for each circuit with equal probability.
    guards_in_use = "path.guards-in-use", 1, 1, 2;
    /// Days for which a guard is kept.
    guard_lifetime_days = "path.guard-lifetime-days", 120, 1, 720;
    /// Layer-2 guards of a client. With 0, each path has another relay behind the guard, and one relay less.
    layer_two_guards = "path.layer-2-guards", 4, 0, 16;
    /// Minimum number of stable relays for layer-2 guards. In a smaller network, a few relays behind the guard are a
    /// large part of all, so that layer-2 guards would cost a hop and hide little.
    min_layer_two_network = "path.layer-2-network", 64, 0, 100_000;
    /// Maximum probability in percent that a circuit's middle is a volunteer, if the relay before it is a volunteer's
    /// gateway.
    volunteer_share = "path.volunteer-share", 50, 0, 100;
    /// Maximum probability in percent that a volunteer performs a delegated request which listed relays offer too.
    volunteer_exit_share = "path.volunteer-exit-share", 10, 0, 100;
    /// Seconds between two volunteer lists.
    volunteer_interval_seconds = "volunteer.interval-seconds", 60, 1, 600;
    /// 1 if relays with similar addresses may be on one path, as in testnets.
    similar_addresses = "path.similar-addresses", 0, 0, 1;
}

impl Parameters {
    /// The same parameters with `name` set to `value`.
    ///
    /// # Errors
    /// When `name` is not a parameter name, or there are too many parameters.
    pub fn with(mut self, name: &str, value: u64) -> Result<Self, ParameterError> {
        if !is_name(name) {
            return Err(ParameterError::Name(name.to_owned()));
        }
        self.values.insert(name.to_owned(), value);
        if self.values.len() > MAX_PARAMETERS { Err(ParameterError::Order) } else { Ok(self) }
    }

    /// The parameters of congestion control, consistent for every consensus: the minimum window contains two tags, and
    /// the initial window is between the minimum and the maximum.
    #[must_use]
    pub fn flow(&self) -> FlowParameters {
        let cells = |value| u32::try_from(value).unwrap_or(u32::MAX);
        let queue_min = cells(self.smallest_queue());
        let tag_interval = cells(self.cells_per_tag());
        let window_min = tag_interval.saturating_mul(2);
        let window_max = cells(self.largest_window());
        FlowParameters {
            tag_interval,
            window_initial: cells(self.initial_window()).max(window_min).min(window_max),
            window_min,
            window_max,
            queue_time: Duration::from_millis(self.queue_milliseconds()),
            queue_min,
            queue_max: cells(self.largest_queue()).max(queue_min),
            stream_credit_max: cells(self.stream_credit()),
            ..FlowParameters::default()
        }
    }

    /// Whether relays with similar addresses may be on one path.
    #[must_use]
    pub fn allows_similar_addresses(&self) -> bool {
        self.similar_addresses() == 1
    }

    /// Interval between two volunteer lists, between two registrations of a volunteer, and between two reports of a
    /// gateway.
    #[must_use]
    pub fn volunteer_interval(&self) -> Duration {
        Duration::from_secs(self.volunteer_interval_seconds())
    }

    /// These parameters, changed for a testnet: similar addresses are allowed, and the volunteer interval is 1 s.
    pub(super) fn of_testnet(mut self) -> Self {
        self.values.insert("path.similar-addresses".to_owned(), 1);
        self.values.insert("volunteer.interval-seconds".to_owned(), 1);
        self
    }

    pub(super) fn encode(&self) -> Vec<schema::Parameter> {
        let encode = |(name, value): (&String, &u64)| schema::Parameter { name: name.clone(), value: *value };
        self.values.iter().map(encode).collect()
    }

    pub(super) fn decode(parameters: Vec<schema::Parameter>) -> Result<Self, ParameterError> {
        if parameters.len() > MAX_PARAMETERS || !parameters.is_sorted_by(|one, next| one.name < next.name) {
            return Err(ParameterError::Order);
        }
        if let Some(bad) = parameters.iter().find(|parameter| !is_name(&parameter.name)) {
            return Err(ParameterError::Name(bad.name.chars().take(MAX_NAME_LEN).collect()));
        }
        let mut values = BTreeMap::new();
        // `collect` would link the library's sorting code, which a page doesn't contain.
        values.extend(parameters.into_iter().map(|parameter| (parameter.name, parameter.value)));
        Ok(Self { values })
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=MAX_NAME_LEN).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_parameter_is_clamped_to_its_bounds() {
        for (name, default, min, max) in TABLE {
            assert!(min <= default && default <= max, "{name}");
        }
        let of = |value| Parameters::default().with("flow.largest-window", value).unwrap().largest_window();
        assert_eq!(Parameters::default().largest_window(), 16_384);
        assert_eq!(of(0), 512);
        assert_eq!(of(1000), 1000);
        assert_eq!(of(u64::MAX), 16_384);
    }

    #[test]
    fn the_largest_window_fits_into_the_queue_of_a_relay() {
        let window_max = Parameters::default().with("flow.largest-window", u64::MAX).unwrap().flow().window_max;
        let queue = crate::channel::ChannelParameters::default().circuit_queue;
        assert!(usize::try_from(window_max).unwrap() + 256 < queue, "the queue needs room for control cells too");
    }

    #[test]
    fn a_consensus_without_parameters_has_the_default_flow_parameters() {
        assert_eq!(Parameters::default().flow(), FlowParameters::default());
    }

    #[test]
    fn flow_parameters_are_consistent_for_every_consensus() {
        let names = TABLE.iter().map(|(name, ..)| *name).filter(|name| name.starts_with("flow."));
        let names: Vec<&str> = names.collect();
        for extremes in 0_u32..1 << names.len() {
            let value = |index: usize| if extremes >> index & 1 == 1 { u64::MAX } else { 0 };
            let parameters = names
                .iter()
                .enumerate()
                .fold(Parameters::default(), |parameters, (index, name)| parameters.with(name, value(index)).unwrap());
            let flow = parameters.flow();
            assert!(flow.tag_interval * 2 <= flow.window_min, "{flow:?}");
            assert!(flow.window_min <= flow.window_initial && flow.window_initial <= flow.window_max, "{flow:?}");
            assert!(flow.queue_min <= flow.queue_max, "{flow:?}");
            // A receiver may have at most 1,024 pending SENDMEs.
            assert!(flow.window_max / flow.tag_interval <= 512, "{flow:?}");
        }
    }

    #[test]
    fn unordered_repeated_and_invalid_parameters_are_refused() {
        let decode = |names: &[&str]| {
            Parameters::decode(names.iter().map(|name| schema::Parameter { name: (*name).into(), value: 1 }).collect())
        };
        assert!(decode(&["a.b", "a.c"]).is_ok());
        assert_eq!(decode(&["a.c", "a.b"]), Err(ParameterError::Order));
        assert_eq!(decode(&["a.b", "a.b"]), Err(ParameterError::Order));
        assert_eq!(decode(&["A"]), Err(ParameterError::Name("A".into())));
        assert!(Parameters::default().with("a b", 1).is_err());
    }
}
