//! How a command reaches a cluster: whoever leads for what is to be done, any coordinator for what is to be read.
//!
//! A token goes over TLS or stays on this machine: it is never sent over plain `http://` to another one.

use super::contexts::{self, Chosen};
use crate::{args::ClusterArgs, failure::Failure};
use rallrec_coordinator::cluster::LEADER_HEADER;
use rallrec_proto::api::{archive_client::ArchiveClient, coordinator_client::CoordinatorClient};
use std::{
    fmt,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// How long a command looks for a leader: longer than a standby needs to take over.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection that says who asks.
pub(super) type Link = InterceptedService<Channel, Bearer>;
/// Asks the leader.
pub(super) type Client = CoordinatorClient<Link>;
/// Asks any coordinator.
pub(super) type Archive = ArchiveClient<Link>;

/// A cluster that a command may ask.
#[derive(Clone, Debug)]
pub struct Cluster {
    addresses: Vec<String>,
    ca: Option<Certificate>,
    bearer: Bearer,
}

/// Who asks.
#[derive(Clone, Default)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(a token)" } else { "Bearer(no token)" })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Bearer {
    fn of(token: &str, place: &str) -> Result<Self, Failure> {
        let wrong = || Failure::Invalid(format!("{place} holds no token: one line of visible ASCII characters"));
        let token = token.trim();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong());
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

/// Why one coordinator could not be asked.
enum NoLink {
    /// Another may be.
    Away(String),
    /// It would be wrong to.
    Refused(Failure),
}

impl Cluster {
    /// The cluster that a command means.
    ///
    /// # Errors
    /// When a context, a certificate or a token cannot be read.
    pub fn of(args: &ClusterArgs) -> Result<Self, Failure> {
        Self::reached(args, contexts::choose(args)?)
    }

    /// The cluster that the command line or the environment names, if one is named.
    ///
    /// # Errors
    /// When a context, a certificate or a token cannot be read.
    pub fn named(args: &ClusterArgs) -> Result<Option<Self>, Failure> {
        // What is wrong with a file that is not asked for does not matter here.
        if args.coordinator.is_none()
            && args.context.is_none()
            && ["RALLREC_COORDINATOR", "RALLREC_CONTEXT"]
                .iter()
                .all(|n| std::env::var_os(n).is_none_or(|v| v.is_empty()))
        {
            return Ok(None);
        }
        let chosen = contexts::choose(args)?;
        if chosen.explicit { Self::reached(args, chosen).map(Some) } else { Ok(None) }
    }

    fn reached(args: &ClusterArgs, chosen: Chosen) -> Result<Self, Failure> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|e| Failure::Unreachable(format!("{}: {e}", path.display())))
        };
        let ca = chosen.ca.as_deref().map(read).transpose()?.map(Certificate::from_pem);
        let variable = std::env::var("RALLREC_TOKEN").ok().filter(|token| !token.is_empty());
        let bearer = match (&args.token_file, variable, &chosen.token_file) {
            (Some(path), _, _) | (None, None, Some(path)) => Bearer::of(&read(path)?, &path.display().to_string())?,
            (None, Some(token), _) => Bearer::of(&token, "RALLREC_TOKEN")?,
            (None, None, None) => Bearer::default(),
        };
        Ok(Self { addresses: chosen.coordinators, ca, bearer })
    }

    /// Asks whoever leads, as long as it takes one to.
    pub(super) async fn ask<T>(&self, ask: impl AsyncFn(Client) -> Result<T, Status>) -> Result<T, Failure> {
        let ask = &ask;
        self.find(move |link| ask(Client::new(link))).await
    }

    /// Asks any coordinator what the store holds.
    pub(super) async fn read<T, F: Future<Output = Result<T, Status>>>(
        &self,
        ask: impl Fn(Archive) -> F,
    ) -> Result<T, Failure> {
        self.find(|link| ask(Archive::new(link))).await
    }

    async fn find<T, F: Future<Output = Result<T, Status>>>(&self, ask: impl Fn(Link) -> F) -> Result<T, Failure> {
        let until = Instant::now() + PATIENCE;
        let mut next = self.addresses.clone();
        loop {
            let mut last = "no address was given".to_owned();
            let mut leader = None;
            for address in std::mem::take(&mut next) {
                let link = match self.link(&address).await {
                    Ok(link) => link,
                    Err(NoLink::Refused(failure)) => return Err(failure),
                    Err(NoLink::Away(why)) => {
                        last = format!("{address}: {why}");
                        continue;
                    }
                };
                match ask(link).await {
                    Ok(answer) => return Ok(answer),
                    Err(status) => {
                        let named =
                            status.metadata().get(LEADER_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
                        match refusal(&status) {
                            _ if named.is_some() => leader = named,
                            Some(failure) => return Err(failure),
                            // Nobody leads at the moment, or the one that did died while it answered.
                            None => {}
                        }
                        last = format!("{address}: {}", status.message());
                    }
                }
            }
            if Instant::now() >= until {
                return Err(Failure::Unreachable(format!(
                    "no coordinator answers: {last}; name its address with --coordinator, RALLREC_COORDINATOR or a context"
                )));
            }
            // Also when a leader is named: it may be the one that just died.
            tokio::time::sleep(Duration::from_millis(200)).await;
            next.extend(leader);
            next.extend(self.addresses.iter().cloned());
        }
    }

    async fn link(&self, address: &str) -> Result<Link, NoLink> {
        let invalid = |why: String| NoLink::Refused(Failure::Invalid(why));
        let wrong =
            |e: tonic::transport::Error| invalid(format!("{address} is no coordinator's address: {}", root(&e)));
        let mut endpoint = Endpoint::from_shared(address.to_owned()).map_err(wrong)?.connect_timeout(CONNECT);
        let uri = endpoint.uri().clone();
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(invalid(format!("{address} is no coordinator's address: write https://HOST:PORT")));
        };
        if scheme == "https" {
            let tls = ClientTlsConfig::new();
            let tls = match &self.ca {
                Some(ca) => tls.ca_certificate(ca.clone()),
                None => tls.with_native_roots(),
            };
            endpoint = endpoint.tls_config(tls).map_err(wrong)?;
        } else if self.bearer.0.is_some() && !is_here(host) {
            return Err(invalid(format!(
                "the token is not sent to {address}: without TLS everybody between could read it; use https://"
            )));
        }
        let channel = endpoint.connect().await.map_err(|error| NoLink::Away(root(&error)))?;
        Ok(Link::new(channel, self.bearer.clone()))
    }
}

/// Whether a host is this machine.
fn is_here(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What a status means for the command; `None`: another try may go better.
pub(super) fn refusal(status: &Status) -> Option<Failure> {
    let message = status.message().to_owned();
    match status.code() {
        Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied => {
            Some(Failure::Invalid(message))
        }
        Code::Unauthenticated => Some(Failure::Invalid(format!(
            "{message}; give it with RALLREC_TOKEN, --token-file or a context's token_file"
        ))),
        Code::DataLoss | Code::Internal | Code::Unimplemented => Some(Failure::Other(anyhow::anyhow!(message))),
        _ => None,
    }
}

fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_is_never_shown() {
        let bearer = Bearer::of("s3cret-s3cret\n", "t").unwrap();
        assert_eq!(format!("{bearer:?}"), "Bearer(a token)");
        assert!(!format!("{:?}", bearer.0).contains("s3cret"), "{:?}", bearer.0);
        for bad in ["", " \n", "two words", "ümlaut"] {
            let error = Bearer::of(bad, "the file").unwrap_err().to_string();
            assert!(error.starts_with("the file holds no token"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_token_does_not_leave_the_machine_without_tls() {
        let bearer = Bearer::of("s3cret-s3cret", "t").unwrap();
        let cluster = Cluster { addresses: vec!["http://192.0.2.1:7070".into()], ca: None, bearer };
        let Err(Failure::Invalid(why)) = cluster.ask(async |_| Ok(())).await else { panic!("it was sent") };
        assert!(why.contains("use https://") && !why.contains("s3cret"), "{why}");
        assert!(["localhost", "127.0.0.1", "127.8.8.8", "[::1]"].iter().all(|host| is_here(host)));
        assert!(!["10.0.0.1", "localhost.example.org", "::2"].iter().any(|host| is_here(host)));
    }
}
