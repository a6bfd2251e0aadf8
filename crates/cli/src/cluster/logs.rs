//! `logs`: what a run's tasks logged, out of a cluster or out of the store on this machine.

use super::connect::{Cluster, refusal};
use crate::{
    args::LogsArgs,
    clock,
    console::{Console, Mark, marked},
    failure::Failure,
    run::Place,
    run_names, stores,
};
use rallrec_coordinator::{LogError, LogReader};
use rallrec_core::ids::{Attempt, RunId, StageName};
use rallrec_proto::api;
use rallrec_store::{LogFilter, LogLine, LogPlace, Store};
use serde_json::{Value, json};
use std::{collections::HashSet, time::Duration};

/// How often the log of a run on this machine is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Prints what is kept, and with `--follow` what comes until the run ends.
///
/// # Errors
/// When the run or the stage is unknown, or the store or the cluster cannot be reached.
pub async fn logs(place: &Place, args: &LogsArgs, console: &Console) -> Result<(), Failure> {
    let printer = Printer { json: args.json, console };
    match Cluster::named(&args.cluster)? {
        Some(cluster) => {
            let run = run_names::resolve(&cluster.store().runs().await?, &args.run)?;
            of_cluster(&cluster, &run, args, &printer).await
        }
        None => {
            let store = stores::to_read(place).await?;
            let run = run_names::resolve(&store.runs().await?, &args.run)?;
            of_store(&store, &run, args, &printer).await
        }
    }
}

async fn of_store(store: &Store, run: &RunId, args: &LogsArgs, printer: &Printer<'_>) -> Result<(), Failure> {
    let (stage, shard) = task(args);
    let filter = LogFilter { stage: stage.map(StageName), shard };
    let mut reader = LogReader::open(store, run, filter).await?;
    loop {
        let (files, ended) = reader.look().await?;
        for file in files {
            for line in reader.lines(&file).await? {
                printer.line(&file.place, &line);
            }
        }
        if ended || !args.follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn of_cluster(cluster: &Cluster, run: &RunId, args: &LogsArgs, printer: &Printer<'_>) -> Result<(), Failure> {
    let (stage, shard) = task(args);
    let request = api::LogsRequest { run: run.0.clone(), stage: stage.unwrap_or_default(), shard, follow: args.follow };
    // Another coordinator begins anew; what was printed is skipped.
    let mut printed = HashSet::new();
    loop {
        let mut stream =
            cluster.read(async |mut archive| Ok(archive.logs(request.clone()).await?.into_inner())).await?;
        loop {
            match stream.message().await {
                Ok(None) => return Ok(()),
                Ok(Some(reply)) => {
                    for line in reply.lines {
                        let place = LogPlace {
                            stage: StageName(line.stage),
                            shard: line.shard,
                            attempt: Attempt(line.attempt),
                        };
                        for line in LogLine::decode_all(&line.line_json) {
                            if printed.insert((place.clone(), line.worker.clone(), line.n)) {
                                printer.line(&place, &line);
                            }
                        }
                    }
                }
                Err(status) => match refusal(&status) {
                    Some(failure) => return Err(failure),
                    None => {
                        tracing::debug!(%status, "the stream broke, asking again");
                        break;
                    }
                },
            }
        }
    }
}

fn task(args: &LogsArgs) -> (Option<String>, Option<u32>) {
    args.task.clone().map_or((None, None), |(stage, shard)| (Some(stage), shard))
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Store(error) => error.into(),
            error => Self::Invalid(error.to_string()),
        }
    }
}

struct Printer<'a> {
    json: bool,
    console: &'a Console,
}

impl Printer<'_> {
    fn line(&self, place: &LogPlace, line: &LogLine) {
        let text =
            if self.json { json_line(place, line) } else { text_line(place, line, self.console.colors_stdout()) };
        self.console.print(&text);
    }
}

fn json_line(place: &LogPlace, line: &LogLine) -> String {
    let LogLine { at, level, target, message, fields, worker, .. } = line;
    let (stage, shard, attempt) = (&place.stage, place.shard, place.attempt);
    json!({
        "at_ms": at, "level": level, "stage": stage, "shard": shard, "attempt": attempt, "worker": worker,
        "target": target, "message": message, "fields": fields,
    })
    .to_string()
}

fn text_line(place: &LogPlace, line: &LogLine, colored: bool) -> String {
    let mark = match line.level.as_str() {
        "ERROR" => Mark::Red,
        "WARN" => Mark::Yellow,
        _ => Mark::Green,
    };
    let level = marked(colored, mark, &format!("{:5}", line.level));
    let attempt = if place.attempt.0 > 1 { format!(" (attempt {})", place.attempt) } else { String::new() };
    let task = format!("{}/{}{attempt}", place.stage, place.shard);
    let mut text = format!("{} {level} {task}: {}", clock::readable(line.at), line.message);
    for (name, value) in &line.fields {
        match value {
            Value::String(value) if !value.contains(|c: char| c.is_whitespace() || c == '"') => {
                text.push_str(&format!(" {name}={value}"));
            }
            value => text.push_str(&format!(" {name}={value}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::ids::TimeMs;

    #[test]
    fn a_line_for_people_and_one_for_programs() {
        let line = LogLine {
            version: LogLine::VERSION,
            n: 0,
            at: TimeMs(1_795_413_901_000),
            level: "WARN".into(),
            target: "t".into(),
            message: "bad row".into(),
            fields: [
                ("row".to_owned(), json!(3)),
                ("why".to_owned(), json!("too long\n")),
                ("w".to_owned(), json!("x")),
            ]
            .into(),
            worker: "w-1".into(),
        };
        let place = LogPlace { stage: StageName("score".into()), shard: 2, attempt: Attempt(3) };
        let text = text_line(&place, &line, false);
        assert_eq!(text, r#"2026-11-23 06:05:01 UTC WARN  score/2 (attempt 3): bad row row=3 w=x why="too long\n""#);
        let json: Value = serde_json::from_str(&json_line(&place, &line)).unwrap();
        assert_eq!((&json["stage"], &json["fields"]["row"]), (&json!("score"), &json!(3)));
    }
}
