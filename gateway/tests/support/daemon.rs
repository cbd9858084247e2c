//! `trefoild` as a process in its own directory: a test starts it, calls it, kills it and starts it again.

use super::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The number of lines of the log that a failed test shows.
const LOG_LINES: usize = 30;

/// The fields of `[gateway]` that are added to a document that doesn't set them.
const DEFAULTS: [(&str, &str); 6] = [
    ("cores", "1"),
    ("memory_per_core", "\"40MiB\""),
    ("max_hosts", "4"),
    ("max_qpairs", "16"),
    ("state_dir", "\"DIR/state\""),
    ("rpc_socket", "\"DIR/rpc.sock\""),
];

/// A gateway, running or killed.
pub struct Daemon {
    pub child: Child,
    pub dir: tempfile::TempDir,
    /// The address that replaced `ADDR` in the gateway's document.
    pub addr: SocketAddr,
    /// The ready line that the gateway printed.
    pub said: String,
    /// The program that starts `trefoild`, and the program's first arguments. Empty if the test starts `trefoild` directly.
    pub through: Vec<String>,
}

/// Returns an address that no other process or test listens on: a loopback address that is unique to this process and this
/// call.
pub fn own_addr() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, middle.max(1), low, NEXT.fetch_add(1, Ordering::Relaxed) as u8);
    SocketAddr::from((ip, 4420 + u16::from(high)))
}

/// Adds [`DEFAULTS`] to a document. Also adds the table `[gateway]` if the document lacks it.
fn with_defaults(document: &str) -> String {
    let (before, after) = document.split_once("[gateway]\n").unwrap_or(("", document));
    let is_set = |key: &str| {
        document.lines().filter_map(|line| line.split_once('=')).any(|(field, _)| field.trim() == key)
    };
    let defaults = DEFAULTS.iter().filter(|(key, _)| !is_set(key));
    let defaults: String = defaults.map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!("{before}[gateway]\n{defaults}{after}")
}

/// Runs `trefoild` until it ends.
pub fn trefoild(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trefoild")).args(args).output().expect("trefoild runs")
}

/// Returns a listener's address in the form of SPDK's methods.
pub fn spdk_address(at: SocketAddr) -> Value {
    let family = if at.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "trtype": "TCP", "adrfam": family, "traddr": at.ip().to_string(), "trsvcid": at.port().to_string(),
    })
}

impl Daemon {
    /// Starts a gateway with `document`; see [`document`](Self::document).
    pub fn start(document: &str) -> Self {
        Self::start_through(document, tempfile::tempdir().expect("a directory"), Vec::new())
    }

    /// Starts a gateway by the program and arguments in `through`, to which `trefoild` and its own arguments are appended.
    pub fn start_by(document: &str, through: &[&str]) -> Self {
        let through = through.iter().map(|word| (*word).to_owned()).collect();
        Self::start_through(document, tempfile::tempdir().expect("a directory"), through)
    }

    /// Starts a gateway in `dir`, by the program and arguments in `through`, to which `trefoild` and its own arguments are
    /// appended.
    pub fn start_through(document: &str, dir: tempfile::TempDir, through: Vec<String>) -> Self {
        let addr = own_addr();
        let text = document_in(dir.path(), addr, document);
        std::fs::write(dir.path().join("trefoil.toml"), text).expect("the document");
        let (child, said) = spawn(dir.path(), &through);
        Self { child, dir, addr, said, through }
    }

    /// Completes a document for this gateway: adds [`DEFAULTS`], and replaces `DIR` by the gateway's directory and `ADDR` by
    /// the gateway's address.
    pub fn document(&self, text: &str) -> String {
        document_in(self.dir.path(), self.addr, text)
    }

    /// Returns a path in the gateway's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns a path in the gateway's directory, as an argument of a command.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file in the gateway's directory. Returns its path as an argument of a command.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), contents).expect("written");
        self.arg(name)
    }

    fn trefoil(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trefoil"));
        command.arg("--socket").arg(self.path("rpc.sock")).args(args);
        command
    }

    /// Runs `trefoil`.
    pub fn run(&self, args: &[&str]) -> Output {
        self.trefoil(args).output().expect("trefoil runs")
    }

    /// Starts `trefoil` without waiting for it.
    pub fn begin(&self, args: &[&str]) -> Child {
        self.trefoil(args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("trefoil runs")
    }

    /// Runs `trefoil`, which must succeed. Returns its output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs `trefoil`, which must be refused. Returns its error message.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    /// Runs `trefoil call`, which must succeed. Returns its output.
    pub fn json(&self, method: &str, params: &str) -> Value {
        serde_json::from_str(&self.ok(&["--json", "call", method, params])).expect("JSON")
    }

    /// Sends a request. Returns the stream on which the answer arrives.
    pub fn ask(&self, method: &str, params: &Value) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("rpc.sock")).expect("the control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        stream.write_all(request.to_string().as_bytes()).expect("a request");
        stream
    }

    /// Calls a method. Returns its result, or the error's message.
    pub fn try_call(&self, method: &str, params: Value) -> Result<Value, String> {
        let answer = answer(self.ask(method, &params)).unwrap_or_else(|| panic!("{method}: no answer"));
        match answer.get("error") {
            Some(error) => Err(error["message"].as_str().unwrap_or_default().to_owned()),
            None => Ok(answer["result"].clone()),
        }
    }

    /// Calls a method, which must succeed. Returns its result.
    pub fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params.clone()).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
    }

    /// Returns the document in the answer of `config_get` or `config_backup`.
    pub fn toml(&self, method: &str) -> String {
        self.call(method, json!({}))["toml"].as_str().expect("TOML").to_owned()
    }

    /// Returns the LUN `name`, or null.
    pub fn lun(&self, name: &str) -> Value {
        let luns = self.call("lun_list", json!({}));
        let found = luns.as_array().and_then(|luns| luns.iter().find(|lun| lun["name"] == name));
        found.cloned().unwrap_or_default()
    }

    /// Returns the process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a signal");
    }

    /// Kills the gateway with SIGKILL, so the gateway can't clean up.
    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("its end");
    }

    /// Starts the gateway again, in the same directory.
    pub fn restart(&mut self) {
        let (child, said) = spawn(self.dir.path(), &self.through);
        (self.child, self.said) = (child, said);
    }

    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Returns the log of all starts of this gateway.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("trefoild.log")).expect("its log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
            eprintln!("--- the end of the gateway's log");
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Waits for the answer to [`Daemon::ask`]. Returns `None` if the gateway ended without an answer.
pub fn answer(stream: UnixStream) -> Option<Value> {
    serde_json::Deserializer::from_reader(stream).into_iter().next()?.ok()
}

/// Returns the metrics of a gateway's Prometheus port.
pub fn metrics(at: SocketAddr) -> String {
    let mut stream = TcpStream::connect(at).expect("the metrics port");
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn document_in(dir: &Path, addr: SocketAddr, text: &str) -> String {
    with_defaults(text).replace("DIR", &dir.display().to_string()).replace("ADDR", &addr.to_string())
}

fn spawn(dir: &Path, through: &[String]) -> (Child, String) {
    let log = File::options().create(true).append(true).open(dir.join("trefoild.log")).expect("a log");
    let mut words = through.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_trefoild")]);
    let mut child = Command::new(words.next().expect("a program"))
        .args(words)
        .arg(dir.join("trefoil.toml"))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("trefoild starts");
    let mut line = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut line).expect("a line");
    if !line.contains("trefoild ready") {
        let log = std::fs::read_to_string(dir.join("trefoild.log")).unwrap_or_default();
        panic!("trefoild said {line:?} and not that it is ready:\n{log}");
    }
    (child, line)
}
