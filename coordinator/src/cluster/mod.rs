//! A coordinator of a cluster: stands by until nobody leads, leads until it is overtaken.
//!
//! ```text
//!  gRPC ── Ask ──►┐                       ┌── Control ──► Driver of a run ── Notice ──┐
//!  NATS ── beats ►├─ Leader (one task) ───┤                                            │
//!  clock ─────────┘   core::fleet         └── orders ───► workers                      │
//!        ▲                                                                            │
//!        └────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The cluster's journal says who leads and which runs there are; each run's own journal says how far it is. Deliberately
//! not here: any decision about a run (its driver's, and [`rallrec_core::run`]'s) or about placement
//! ([`rallrec_core::fleet`]'s).

mod access;
mod active;
mod archive;
mod candidate;
mod leader;
mod record;
mod service;
mod standby;

pub use access::{Tls, Tokens, TokensError};
pub use candidate::{Candidate, RunWatcher};
pub use leader::LeaderError;
pub use record::ClusterRecord;
pub(crate) use record::active_runs;
pub use service::{Interface, LEADER_HEADER};

use crate::SystemClock;
use rallrec_proto::api::{archive_server::ArchiveServer, coordinator_server::CoordinatorServer};
use rallrec_queue::nats::{NatsCoordinator, NatsSettings};
use rallrec_store::Store;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, sync::watch};

/// What a coordinator is given.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Its name; another one after each start.
    pub name: String,
    /// Where its gRPC interface listens.
    pub listen: SocketAddr,
    /// Where people reach that, if not there.
    pub address: Option<String>,
    /// How NATS is reached.
    pub nats: NatsSettings,
    /// Its certificate; without one it speaks in the clear.
    pub tls: Option<Tls>,
    /// Named limits over all runs.
    pub limits: BTreeMap<String, u32>,
    /// Tokens that it accepts; without any it asks for none.
    pub tokens: Tokens,
}

/// Why a coordinator could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Its address is taken, or is not this machine's.
    #[error("cannot listen on {address}: {source}; name another address with `listen`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its certificate or its key cannot be used.
    #[error("the certificate of `[tls]` and its key cannot be used: {0}; both are PEM files, and belong together")]
    Tls(tonic::transport::Error),
    /// The interface failed.
    #[error("the gRPC interface ended: {0}")]
    Interface(#[from] tonic::transport::Error),
    /// Leading failed.
    #[error(transparent)]
    Leader(#[from] LeaderError),
}

/// A coordinator that listens and has not begun.
pub struct Coordinator {
    store: Store,
    settings: ClusterSettings,
    listener: TcpListener,
}

impl Coordinator {
    /// Listens, so that the address is known.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(store: Store, settings: ClusterSettings) -> Result<Self, ClusterError> {
        let failed = |source| ClusterError::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        Ok(Self { store, settings, listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Stands by and leads, in turns, until `stop` says so.
    ///
    /// # Errors
    /// When the store or NATS cannot be used, or the interface fails.
    pub async fn serve(self, mut stop: watch::Receiver<bool>) -> Result<(), ClusterError> {
        let Self { store, settings, listener } = self;
        let address = settings.address.clone().unwrap_or_else(|| {
            let bound = listener.local_addr().map_or_else(|_| settings.listen.to_string(), |a| a.to_string());
            let scheme = if settings.tls.is_some() { "https" } else { "http" };
            format!("{scheme}://{bound}")
        });
        let network = NatsCoordinator::connect(&settings.nats).await.map_err(LeaderError::from)?;
        let archive = archive::Archive::new(store.clone(), settings.name.clone(), settings.nats.clone());
        let candidate = Candidate::new(store, Arc::new(network), Arc::new(SystemClock), settings.name, address)
            .limited_to(settings.limits);
        let interface = {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let mut stop = stop.clone();
            let mut server = tonic::transport::Server::builder();
            if let Some(tls) = &settings.tls {
                server = server.tls_config(tls.config()).map_err(ClusterError::Tls)?;
            }
            server
                .add_service(CoordinatorServer::with_interceptor(candidate.interface(), settings.tokens.clone()))
                .add_service(ArchiveServer::with_interceptor(archive, settings.tokens.clone()))
                .serve_with_incoming_shutdown(incoming, async move { drop(stop.wait_for(|stop| *stop).await) })
        };
        tokio::select! {
            ended = interface => Ok(ended?),
            failed = candidate.stand() => match failed.map_err(ClusterError::from)? {},
            _ = stop.wait_for(|stop| *stop) => Ok(()),
        }
    }
}
