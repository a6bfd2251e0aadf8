//! A wire to a real server: whatever is said on it goes through, until the wire is cut or falls silent. What a partition
//! is to the processes at its ends, for each of them alone.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// How a wire is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Everything goes through.
    #[default]
    Whole,
    /// Nothing goes through, and nobody is told: as where packets vanish.
    Silent,
    /// Connections end at once.
    Cut,
}

/// A wire to a server on this machine, until the test ends.
#[derive(Clone, Debug)]
pub struct Wire {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    condition: Condition,
    /// Both ends of what is connected.
    connected: Vec<TcpStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the wire is silent. Gives whether it is whole then.
    fn whole(&self) -> bool {
        let waited = self.changed.wait_while(self.lock(), |state| state.condition == Condition::Silent);
        waited.unwrap_or_else(PoisonError::into_inner).condition == Condition::Whole
    }
}

impl Wire {
    /// A wire to that port.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it listens").port();
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A server that is away refuses; the client sees its connection end.
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let _ = connect(&theirs, &client, &server);
            }
        });
        Self { port, shared }
    }

    /// The port of its near end.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts it, silences it, or mends it.
    pub fn set(&self, condition: Condition) {
        let mut state = self.shared.lock();
        state.condition = condition;
        if condition == Condition::Cut {
            state.connected.drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
        self.shared.changed.notify_all();
    }
}

fn connect(shared: &Arc<Shared>, client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    {
        let mut state = shared.lock();
        if state.condition == Condition::Cut {
            return client.shutdown(Shutdown::Both);
        }
        state.connected.extend([client.try_clone()?, server.try_clone()?]);
    }
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)] {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || pump(&shared, from, to));
    }
    Ok(())
}

/// Passes on what one end says, until an end is gone.
fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !shared.whole() || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
