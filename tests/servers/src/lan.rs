//! Machines on one network, each a network namespace, with a router between them that drops packets on demand.
//!
//! Nothing of it has a name on this machine: namespaces are held by processes that end when this value is dropped, and
//! also when the test is killed, as then their standard input ends. All that was started inside is in one process
//! namespace, and ends with it.

use std::{
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

/// What may forbid it, and stands in for it nowhere.
const FORBIDDEN: &str = "skipped: network namespaces need iproute2, and root or user namespaces";

/// Machines and the router between them.
#[derive(Debug)]
pub struct Lan {
    /// Its network is the router's; all programs are in its process namespace.
    router: Holder,
    /// By position; addresses follow from it.
    machines: Vec<(String, Holder)>,
    /// Whether there is a user namespace round all of it.
    is_user: bool,
}

impl Lan {
    /// Machines of these names. `None`, said on stderr, where namespaces are forbidden or `ip` is missing: unless
    /// `RALLREC_NO_SKIPS` is set and `RALLREC_NO_NAMESPACES` is not.
    ///
    /// # Panics
    /// When it cannot be made although it is allowed, or when it must be.
    #[expect(clippy::print_stderr, reason = "a test that is not run should say so")]
    pub fn of(names: &[&str]) -> Option<Self> {
        let own = ["--net", "--pid", "--fork", "--kill-child", "cat"];
        let user = ["--user", "--map-root-user"];
        let router = |user: &[&str]| Holder::start(Command::new("unshare").args(user).args(own));
        let found = router(&[]).map(|router| (router, false)).or_else(|| router(&user).map(|router| (router, true)));
        let made = found.and_then(|(router, is_user)| {
            let mut lan = Self { router, machines: Vec::new(), is_user };
            let forwards = "echo 1 > /proc/sys/net/ipv4/ip_forward && ip link set lo up";
            let output = lan.enter(&lan.router, false).args(["sh", "-c", forwards]).output().ok()?;
            output.status.success().then(|| names.iter().for_each(|name| lan.add(name)))?;
            Some(lan)
        });
        if made.is_none() {
            let must = std::env::var_os("RALLREC_NO_SKIPS").is_some();
            assert!(!must || std::env::var_os("RALLREC_NO_NAMESPACES").is_some(), "{FORBIDDEN}");
            eprintln!("{FORBIDDEN}");
        }
        made
    }

    fn add(&mut self, name: &str) {
        let number = self.machines.len();
        let machine = Holder::start(self.enter(&self.router, false).args(["unshare", "--net", "cat"]));
        let machine = machine.expect("another network namespace");
        let (wire, router, address) = (wire(number), address(number, 1), address(number, 2));
        let pid = machine.process.id();
        self.ip(&self.router, &format!("link add {wire} type veth peer name eth0 netns {pid}"));
        self.ip(&self.router, &format!("address add {router}/24 dev {wire}"));
        self.ip(&self.router, &format!("link set {wire} up"));
        self.ip(&machine, &format!("address add {address}/24 dev eth0"));
        self.ip(&machine, "link set lo up");
        self.ip(&machine, "link set eth0 up");
        self.ip(&machine, &format!("route add default via {router}"));
        self.machines.push((name.to_owned(), machine));
    }

    fn number(&self, name: &str) -> usize {
        self.machines.iter().position(|(known, _)| known == name).unwrap_or_else(|| panic!("no machine {name}"))
    }

    /// A machine's address.
    ///
    /// # Panics
    /// When there is no such machine.
    pub fn address(&self, name: &str) -> String {
        address(self.number(name), 2)
    }

    /// This command on a machine.
    ///
    /// # Panics
    /// When there is no such machine.
    pub fn on(&self, name: &str, command: &Command) -> Command {
        let mut inside = self.enter(&self.machines[self.number(name)].1, true);
        inside.arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(variable, value),
                None => inside.env_remove(variable),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        inside
    }

    /// Pulls a machine's cable out.
    ///
    /// # Panics
    /// When there is no such machine.
    pub fn unplug(&self, name: &str) {
        self.ip(&self.router, &format!("link set {} down", wire(self.number(name))));
    }

    /// Puts it in again.
    ///
    /// # Panics
    /// When there is no such machine.
    pub fn plug(&self, name: &str) {
        self.ip(&self.router, &format!("link set {} up", wire(self.number(name))));
    }

    /// Drops every packet from one machine to another, and tells nobody. The other direction is another matter.
    ///
    /// # Panics
    /// When there are no such machines.
    pub fn block(&self, from: &str, to: &str) {
        self.ip(&self.router, &format!("rule add {} blackhole", self.between(from, to)));
    }

    /// Lets them pass again.
    ///
    /// # Panics
    /// When they were not dropped.
    pub fn pass(&self, from: &str, to: &str) {
        self.ip(&self.router, &format!("rule del {} blackhole", self.between(from, to)));
    }

    fn between(&self, from: &str, to: &str) -> String {
        format!("from {} to {}", self.address(from), self.address(to))
    }

    /// The beginning of a command in a holder's network; with `processes`, also where all programs are.
    fn enter(&self, holder: &Holder, processes: bool) -> Command {
        let mut enter = Command::new("nsenter");
        let router = self.router.process.id();
        if self.is_user {
            enter.arg(format!("--user=/proc/{router}/ns/user")).arg("--preserve-credentials");
        }
        enter.arg(format!("--net=/proc/{}/ns/net", holder.process.id()));
        if processes {
            enter.arg(format!("--pid=/proc/{router}/ns/pid_for_children"));
        }
        enter.arg("--");
        enter
    }

    fn ip(&self, holder: &Holder, words: &str) {
        let output = self.enter(holder, false).arg("ip").args(words.split(' ')).output().expect("nsenter runs");
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn wire(number: usize) -> String {
    format!("wire{number}")
}

fn address(network: usize, host: usize) -> String {
    format!("10.77.{network}.{host}")
}

/// A process in whose namespaces others run: `cat`, which ends with its standard input.
#[derive(Debug)]
struct Holder {
    process: Child,
}

impl Holder {
    /// Starts one. `None` when that is not allowed.
    fn start(command: &mut Command) -> Option<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = Self { process: command.spawn().ok()? };
        // What comes back says that the namespaces are there.
        let mut back = [0];
        let held = holder.process.stdin.as_mut()?.write_all(b"\n").is_ok()
            && holder.process.stdout.as_mut()?.read_exact(&mut back).is_ok();
        held.then_some(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The first of its process namespace ends when there is no input any more, and all others there with it: then
        // this one does.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::Lan;
    use std::{
        io::{BufRead, BufReader, Read, Write},
        process::{Command, Stdio},
    };

    #[test]
    fn whatever_runs_on_it_ends_with_it() {
        let Some(lan) = Lan::of(&["a"]) else { return };
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' TERM HUP INT; echo; while :; do sleep 1000; done"]);
        let mut running = lan.on("a", &shell).stdout(Stdio::piped()).spawn().expect("nsenter runs");
        running.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("it runs");
        drop(lan);
        assert!(!running.wait().expect("it ends").success());
    }

    /// Words go from `a` to `b`, a datagram each. What is said while the way is blocked is gone.
    #[test]
    fn packets_vanish() {
        let Some(lan) = Lan::of(&["a", "b"]) else { return };
        let python = |machine: &str, program: &str| {
            let mut command = Command::new("python3");
            let mut command = lan.on(machine, command.args(["-c", program]));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs")
        };
        let listen = "import socket\ns = socket.socket(type=socket.SOCK_DGRAM); s.bind(('0.0.0.0', 7000))\n\
                      print('listens', flush=True)\nwhile True: print(s.recv(100).decode(), flush=True)";
        let mut b = python("b", listen);
        let mut heard = BufReader::new(b.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        let to = lan.address("b");
        let speak = format!(
            "import socket, sys\ns = socket.socket(type=socket.SOCK_DGRAM)\n\
             for line in sys.stdin: s.sendto(line[:-1].encode(), ('{to}', 7000)); print('sent', flush=True)"
        );
        assert_eq!(heard.next().as_deref(), Some("listens"));
        let mut a = python("a", &speak);
        let mut sent = BufReader::new(a.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        let mut say = |word: &str| {
            writeln!(a.stdin.as_mut().expect("a pipe"), "{word}").expect("a listens");
            assert_eq!(sent.next().as_deref(), Some("sent"));
        };
        for (number, mend) in [Lan::pass as fn(&Lan, &str, &str), |lan, _, to| lan.plug(to)].into_iter().enumerate() {
            say(&format!("before {number}"));
            assert_eq!(heard.next(), Some(format!("before {number}")));
            if number == 0 {
                lan.block("a", "b")
            } else {
                lan.unplug("b")
            }
            say("lost");
            mend(&lan, "a", "b");
            say("after");
            assert_eq!(heard.next().as_deref(), Some("after"));
        }
        drop(lan);
        let _ = (a.wait(), b.wait());
    }
}
