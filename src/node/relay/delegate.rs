//! Builds the [`Delegate`] of a relay from its options.

use std::{sync::Arc, time::Instant};

use super::ExitNetwork;
use crate::{
    exit::{
        delegated::{
            Delegate,
            engines::{Engines, Senders},
            http::{AllowRule, Http, HttpCaps, HttpPolicy},
            limits::{ExitLimits, Rates},
            search::{ExitSearch, SearchCaps},
        },
        outbound::{OutboundClient, OutboundLimits, TargetPolicies},
    },
    exit_policy::Policy,
    io::{resolver::Resolver, tls::Tls},
    node::{
        Failure,
        options::{DelegatePolicy, RelayOptions},
    },
};

/// The rules for the targets of open requests if the relay has no exit policy.
const OPEN_RULES: [&str; 2] = ["accept *:80", "accept *:443"];

/// The delegated services that `options` configure, if there are any.
///
/// # Errors
/// When an option, or the description at the path or URL of an engine, can't be used.
pub(super) async fn delegate(
    options: &RelayOptions,
    exit: Option<&Policy>,
    network: &ExitNetwork,
    resolver: &Arc<Resolver>,
) -> Result<Option<Delegate>, Failure> {
    let Some(delegated) = options.delegate else {
        return if options.allow_request.is_some() || options.engine.is_some() {
            Err(Failure::usage("allow-request and engine need delegate, which is missing"))
        } else {
            Ok(None)
        };
    };
    let private = options.allow_private_targets.unwrap_or(false);
    let policy = |rules: &[&str], private: bool| {
        let parsed = Policy::parse(rules, private).map_err(Failure::usage)?;
        Ok::<_, Failure>(network.restrict(parsed))
    };
    let tls = Tls::new(options.delegate_root.iter().flatten()).map_err(Failure::invalid("delegate-root"))?;
    let outbound =
        |policies| OutboundClient::new(policies, Arc::clone(resolver), tls.clone(), OutboundLimits::default());
    let accept_all = |private| policy(&["accept *"], private);
    // An address that the operator configured is allowed, even if it is private.
    let configured = outbound(TargetPolicies { resolved: accept_all(private)?, literal: accept_all(true)? });
    let http = match delegated {
        DelegatePolicy::Search if options.engine.iter().flatten().next().is_none() => {
            return Err(Failure::usage("delegate: \"search\" needs an engine; add --engine"));
        }
        DelegatePolicy::Search => HttpPolicy::None,
        DelegatePolicy::AllowList => {
            let entries = options.allow_request.iter().flatten();
            let list = AllowRule::parse_all(entries).map_err(Failure::usage)?;
            if list.is_empty() {
                return Err(Failure::usage("delegate: \"allow-list\" needs allowed requests; add --allow-request"));
            }
            HttpPolicy::Listed(list, configured.clone())
        }
        DelegatePolicy::Open => {
            let open = exit.cloned().map_or_else(|| policy(&OPEN_RULES, private), Ok)?;
            HttpPolicy::Open(outbound(TargetPolicies { resolved: open.clone(), literal: open }))
        }
    };
    let (rates, caps) = (Rates::default(), HttpCaps::default());
    let rates = rates.with_averages(
        options.delegated_rate.unwrap_or(rates.in_total),
        options.delegated_circuit_rate.unwrap_or(rates.per_circuit),
    );
    let caps = HttpCaps {
        max_body_len: options.delegated_size.map_or(caps.max_body_len, |size| size.as_u64()),
        request_timeout: options.delegated_time.map_or(caps.request_timeout, core::time::Duration::from_secs),
        ..caps
    };
    let public = outbound(TargetPolicies { resolved: accept_all(private)?, literal: accept_all(private)? });
    let search = search(options, Senders { configured, public }).await?;
    Ok(Some(Delegate::new(search, Http::new(http, caps), ExitLimits::new(rates, Instant::now()))))
}

/// The search service with the engines of `options`, whose requests `senders` send.
async fn search(options: &RelayOptions, senders: Senders) -> Result<ExitSearch, Failure> {
    let entries: Vec<&String> = options.engine.iter().flatten().collect();
    let engines = Engines::load(&entries, senders).await.map_err(Failure::usage)?;
    Ok(ExitSearch::new(engines, SearchCaps::default()))
}
