//! The testnet's processes: starts them, receives their reports, stops them.
//!
//! No process outlives the testnet: the standard input of each process is the reading end of a pipe, and the process
//! ends when the pipe closes ([`crate::node::supervised`]).

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

use crate::node::{Failure, report::Report};

/// Time limit for a node to end by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A node to start.
pub(super) struct Spawn {
    name: String,
    arguments: Vec<String>,
}

impl Spawn {
    /// A node that runs `umbel <role>` with its own folder `name` inside `folder`.
    pub(super) fn new(role: &str, name: &str, folder: &Path) -> Self {
        let data_dir = format!("--data-dir={}", folder.join(name).display());
        Self { name: name.to_owned(), arguments: vec![role.to_owned(), "--supervised".to_owned(), data_dir] }
    }

    pub(super) fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(super) fn args(mut self, arguments: &[String]) -> Self {
        self.arguments.extend_from_slice(arguments);
        self
    }
}

/// Index of a node, in start order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeIndex(usize);

/// The started nodes.
pub(super) struct Nodes {
    program: PathBuf,
    folder: PathBuf,
    nodes: Vec<NodeProcess>,
    remover: Option<Child>,
    reports: mpsc::Receiver<(NodeIndex, Option<Report>)>,
    reporter: mpsc::Sender<(NodeIndex, Option<Report>)>,
}

struct NodeProcess {
    name: String,
    process: Child,
}

impl Nodes {
    /// An empty set of nodes. Started nodes write their logs to `folder`.
    pub(super) fn new(folder: &Path) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(Failure::system("can't find this program's file"))?;
        let (reporter, reports) = mpsc::channel(64);
        Ok(Self { program, folder: folder.to_owned(), nodes: Vec::new(), remover: None, reports, reporter })
    }

    /// Starts a process that removes the folder when this process ends for any reason.
    pub(super) fn remove_folder_afterwards(&mut self) -> Result<(), Failure> {
        let child = Command::new(&self.program)
            .arg("testnet-remove")
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Failure::system("can't start the process that removes the folder"))?;
        self.remover = Some(child);
        Ok(())
    }

    /// Starts a node.
    pub(super) fn spawn(&mut self, spawn: Spawn) -> Result<NodeIndex, Failure> {
        let failed = |error: io::Error| Failure::system(format!("can't start {}", spawn.name))(error);
        let log = File::create(self.log_path(&spawn.name)).map_err(failed)?;
        // In a separate process group, because Ctrl-C must reach only the testnet, which then ends the nodes in order.
        let mut process = Command::new(&self.program)
            .args(&spawn.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let index = NodeIndex(self.nodes.len());
        if let Some(output) = process.stdout.take() {
            let reporter = self.reporter.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(output).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Ok(report) = serde_json::from_str(&line) {
                        let _ = reporter.send((index, Some(report))).await;
                    }
                }
                let _ = reporter.send((index, None)).await;
            });
        }
        self.nodes.push(NodeProcess { name: spawn.name, process });
        Ok(index)
    }

    /// The next report of any node.
    ///
    /// # Errors
    /// When a node has ended.
    pub(super) async fn any_report(&mut self) -> Result<(NodeIndex, Report), Failure> {
        match self.reports.recv().await {
            Some((node, Some(report))) => Ok((node, report)),
            Some((node, None)) => Err(self.ended(node)),
            None => Err(Failure::failed("no node is running")),
        }
    }

    /// The next report of `node`; reports of other nodes are discarded.
    pub(super) async fn next_report(&mut self, node: NodeIndex) -> Result<Report, Failure> {
        loop {
            let (from, report) = self.any_report().await?;
            if from == node {
                return Ok(report);
            }
        }
    }

    /// Runs until the node `needed` ends. Prints a message for each other node that ends.
    pub(super) async fn run(&mut self, needed: &str) -> Result<(), Failure> {
        loop {
            match self.reports.recv().await {
                Some((node, None)) if self.name(node) != needed => {
                    println!("{} ended unexpectedly; the other nodes continue", self.name(node));
                }
                Some((node, None)) => return Err(self.ended(node)),
                Some((_, Some(_))) => {}
                None => return Err(Failure::failed("no node is running")),
            }
        }
    }

    /// Stops all nodes and waits for each.
    pub(super) async fn stop(mut self) {
        for node in &mut self.nodes {
            drop(node.process.stdin.take());
        }
        for node in &mut self.nodes {
            if timeout(STOP_TIMEOUT, node.process.wait()).await.is_err() {
                let _ = node.process.kill().await;
            }
        }
        if let Some(mut remover) = self.remover {
            drop(remover.stdin.take());
            let _ = timeout(STOP_TIMEOUT, remover.wait()).await;
        }
    }

    /// `message`, followed by the last lines of each log that isn't empty.
    pub(super) fn with_logs(&self, message: &str) -> String {
        let mut text = message.to_owned();
        for node in &self.nodes {
            text.push_str(&self.log_tail(&node.name));
        }
        text
    }

    fn ended(&self, node: NodeIndex) -> Failure {
        let name = self.name(node);
        Failure::failed(format!("{name} ended unexpectedly{}", self.log_tail(name)))
    }

    fn name(&self, node: NodeIndex) -> &str {
        self.nodes.get(node.0).map_or("a node", |node| node.name.as_str())
    }

    fn log_tail(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.log_path(name)).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        lines.iter().rev().map(|line| format!("\n  {name}: {line}")).collect()
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}
