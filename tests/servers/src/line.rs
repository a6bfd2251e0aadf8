//! A line to a real HTTP server that fails on demand: what comes through is the server's own, and what fails fails as
//! networks and overloaded servers do.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// One request, as the line sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// How many came before it.
    pub number: usize,
    /// Its method.
    pub method: String,
    /// Its path with its query.
    pub target: String,
    /// Its headers, in lower case, one a line.
    pub headers: String,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection ends without an answer, and the server hears nothing.
    Cut,
    /// The server hears nothing, and 500 is answered.
    Refused,
    /// The server hears nothing, and 403 is answered: nobody tries that again.
    Denied,
    /// The server does what it is asked, and 500 is answered all the same.
    DoneThenRefused,
    /// The server does what it is asked, and the connection ends without an answer.
    DoneThenCut,
    /// The request reaches the server only after this time.
    Slow(Duration),
    /// As [`Fault::None`], but what was asked by create-if-absent overwrites: a server that ignores the condition.
    Unconditional,
}

/// What is said when something is refused.
const REFUSED: &str =
    "Content-Length: 56\r\nConnection: close\r\n\r\n<Error><Code>Broken</Code><Message>No.</Message></Error>";

/// A line to a server on this machine, until the test ends.
#[derive(Debug)]
pub struct Line {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Line {
    /// A line to that port, on which `fault` is asked about each request.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to(server: u16, fault: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it listens").port();
        let (seen, fault) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::new(fault));
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (log, fault) = (Arc::clone(&log), Arc::clone(&fault));
                // A client or server that goes away is its own business.
                std::thread::spawn(move || _ = serve(&client, server, &log, &*fault));
            }
        });
        Self { port, seen }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One request a connection.
fn serve(
    client: &TcpStream,
    server: u16,
    log: &Mutex<Vec<Request>>,
    fault: &dyn Fn(&Request) -> Fault,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers = lines[1..].join("\n").to_lowercase();
    let length = headers.lines().find_map(|h| h.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = {
        let mut seen = log.lock().unwrap_or_else(PoisonError::into_inner);
        let request = Request { number: seen.len(), method, target, headers };
        seen.push(request.clone());
        request
    };
    let fault = fault(&request);
    let answer = match fault {
        Fault::Cut | Fault::Refused | Fault::Denied => Vec::new(),
        Fault::Slow(time) => {
            std::thread::sleep(time);
            passed_on(server, &lines, &body, fault)?
        }
        _ => passed_on(server, &lines, &body, fault)?,
    };
    let mut client = client;
    match fault {
        Fault::Cut | Fault::DoneThenCut => {}
        Fault::Refused | Fault::DoneThenRefused => write!(client, "HTTP/1.1 500 Broken\r\n{REFUSED}")?,
        Fault::Denied => write!(client, "HTTP/1.1 403 Denied\r\n{REFUSED}")?,
        _ => client.write_all(&answer)?,
    }
    client.shutdown(Shutdown::Both)
}

/// The server's whole answer.
fn passed_on(server: u16, lines: &[String], body: &[u8], fault: Fault) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", server))?;
    let dropped = |line: &&String| {
        let name = line.split(':').next().unwrap_or_default().to_lowercase();
        name == "connection" || (fault == Fault::Unconditional && name == "if-none-match")
    };
    let mut head: String = lines.iter().filter(|line| !dropped(line)).map(|line| format!("{line}\r\n")).collect();
    head += "Connection: close\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
