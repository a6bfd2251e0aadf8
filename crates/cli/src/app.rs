//! From the command line to the command: the only module that knows all of them.

use crate::{
    args::{Cli, ClusterArgs, Command, ContextAction, Global, PipelineArgs},
    artifacts, cluster, compare,
    console::{Console, LogWriter, counted},
    data, doctor, explain,
    failure::{DONE, Failure},
    gc,
    home::Home,
    learned,
    load::{self, Absent},
    plan_view, report,
    run::{self, Place},
    run_lock::RunLocks,
    runs,
    sources::{Patience, Role, Sources, catalogue},
    stores::to_read as open,
    sweep,
};
use clap::{CommandFactory, Parser};
use rallrec_core::plan::{Pins, Plan};
use rallrec_store::{BucketSettings, Store};
use rallrec_worker::TaskLogs;
use std::{path::PathBuf, process::ExitCode};
use tracing_subscriber::{EnvFilter, Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Runs the program.
pub fn main() -> ExitCode {
    // Wrong arguments end here with exit code 2, which is that of invalid input.
    let cli = Cli::parse();
    let console = Console::new(cli.global.color);
    log(cli.global.verbose, &console);
    match dispatch(cli, &console) {
        Ok(()) => ExitCode::from(DONE),
        Err(failure) => {
            match &failure {
                Failure::Pipeline(findings) => console.note(findings.trim_end()),
                Failure::Interrupted { .. } => console.note(&failure.to_string()),
                _ => console.error(&failure.to_string()),
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(cli: Cli, console: &Console) -> Result<(), Failure> {
    let place = place(&cli.global);
    match cli.command {
        Command::Run(args) => runtime()?.block_on(run::run(&place, &args, console)),
        Command::Sweep(args) => runtime()?.block_on(sweep::sweep(&place, &args, console)),
        Command::Validate { pipelines, set } => validate(&place.sources, &pipelines, &set, console),
        Command::Plan { pipeline, json } => {
            let (mut plan, pins) = plan(&place, &pipeline, console)?;
            runtime()?.block_on(async {
                let store = open(&place).await?;
                learned::learn(&store, &mut plan, &pins.model_bytes).await;
                plan_view::show(&store, &plan, json, console).await
            })
        }
        Command::Explain { run, stage, against, cluster } => runtime()?.block_on(async {
            explain::show(&archive(&place, &cluster).await?, &run, &stage, against.as_deref(), console).await
        }),
        Command::Runs { json, cluster } => runtime()?.block_on(async {
            if let Some(cluster) = cluster::Cluster::named(&cluster)? {
                let active = cluster::active_runs(&cluster).await?;
                return runs::show(&cluster.store(), &|run| active.contains(run), json, console).await;
            }
            let locks = RunLocks::new(&place.home);
            runs::show(&open(&place).await?, &|run| locks.is_held(run), json, console).await
        }),
        Command::Report(args) => {
            runtime()?.block_on(async { report::report(&archive(&place, &args.cluster).await?, &args, console).await })
        }
        Command::Artifacts { run, stage, json, cluster } => runtime()?.block_on(async {
            artifacts::show(&archive(&place, &cluster).await?, &run, stage.as_deref(), json, console).await
        }),
        Command::Compare(args) => runtime()?.block_on(compare::compare(archive(&place, &args.cluster), &args, console)),
        Command::Logs(args) => runtime()?.block_on(cluster::logs(&place, &args, console)),
        Command::Schema => {
            let schema = rallrec_core::schema::json_schema();
            console.print(&serde_json::to_string_pretty(&schema).map_err(anyhow::Error::from)?);
            Ok(())
        }
        Command::Data { action } => data::act(&place.sources, Role::Data, &action, console),
        Command::Models { action } => data::act(&place.sources, Role::Model, &action, console),
        Command::Coordinator { config } => runtime()?.block_on(cluster::coordinator(&place, &config, console)),
        Command::Worker { config } => runtime()?.block_on(cluster::worker(&place, &config, console)),
        Command::Submit(args) => runtime()?.block_on(cluster::submit(&place, &args, console)),
        Command::Status { run, cluster: args } => runtime()?.block_on(cluster::status(&args, run.as_deref(), console)),
        Command::Watch { run, json, cluster: args } => runtime()?.block_on(cluster::watch(&args, &run, json, console)),
        Command::Cancel { run, cluster: args } => runtime()?.block_on(cluster::cancel(&args, &run, console)),
        Command::Retry { run, failed: _, cluster: args } => runtime()?.block_on(cluster::retry(&args, &run, console)),
        Command::Workers(args) => runtime()?.block_on(cluster::workers(&args, console)),
        Command::Drain { worker, cluster: args } => runtime()?.block_on(cluster::drain(&args, &worker, console)),
        Command::Gc(args) => runtime()?.block_on(gc::gc(&place, &args, console)),
        Command::Context { action: ContextAction::List } => cluster::list_contexts(console),
        Command::Context { action: ContextAction::Use { name } } => cluster::choose_context(&name, console),
        Command::Doctor { config: None } => runtime()?.block_on(doctor::examine(&place, console)),
        Command::Doctor { config: Some(path) } => runtime()?.block_on(cluster::doctor(&place, &path, console)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rallrec", &mut script);
            console.print_raw(&script);
            Ok(())
        }
    }
}

fn place(global: &Global) -> Place {
    let home = Home::new(global.home.clone(), global.store.clone());
    let buckets = BucketSettings::from_environment();
    let sources = Sources::new(home.sources(), catalogue(), Patience::default()).with_buckets(buckets.clone());
    Place { home, sources, buckets }
}

/// The store of the cluster that is named, or this machine's.
async fn archive(place: &Place, args: &ClusterArgs) -> Result<Store, Failure> {
    match cluster::Cluster::named(args)? {
        Some(cluster) => Ok(cluster.store()),
        None => open(place).await,
    }
}

/// Checks every file, and goes on to the next when one is refused.
fn validate(sources: &Sources, pipelines: &[PathBuf], set: &[String], console: &Console) -> Result<(), Failure> {
    let mut refused = Vec::new();
    for path in pipelines {
        let checked = load::pipeline(path, set, console).and_then(|pipeline| {
            load::check_names(&pipeline, sources)?;
            Ok(pipeline)
        });
        match checked {
            Ok(pipeline) => {
                console.print(&format!("{}: ok, {}", path.display(), counted(pipeline.stages.len() as u64, "stage")));
            }
            Err(failure @ Failure::Unreachable(_)) => return Err(failure),
            Err(Failure::Invalid(text)) => {
                refused.extend(text.lines().map(|line| format!("{}: error: {line}", path.display())));
            }
            Err(failure) => refused.push(failure.to_string()),
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(Failure::Pipeline(refused.join("\n"))) }
}

/// Compiles and pins without pulling anything: planning has no effects.
fn plan(place: &Place, args: &PipelineArgs, console: &Console) -> Result<(Plan, Pins), Failure> {
    let pipeline = load::pipeline(&args.pipeline, &args.set, console)?;
    for name in load::absent(&pipeline, &place.sources)? {
        console.note(&format!("source `{name}` is not here yet; `run` pulls it"));
    }
    let pinned = load::pin_shown(&pipeline, &args.pipeline, &place.home, &place.sources, Absent::Expect, console)?;
    let plan = Plan::new(&pipeline, &pinned.pins).map_err(|e| Failure::Invalid(e.to_string()))?;
    Ok((plan, pinned.pins))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| Failure::Other(e.into()))
}

fn log(verbose: u8, console: &Console) {
    let default = match verbose {
        0 => "warn",
        1 => {
            "warn,rallrec=info,rallrec_cli=info,rallrec_core=info,rallrec_store=info,rallrec_queue=info,rallrec_coordinator=info,rallrec_worker=info,rallrec_stages=info,rallrec_llm=info,rallrec_recsys=info"
        }
        _ => {
            "info,rallrec=debug,rallrec_cli=debug,rallrec_core=debug,rallrec_store=debug,rallrec_queue=debug,rallrec_coordinator=debug,rallrec_worker=debug,rallrec_stages=debug,rallrec_llm=debug,rallrec_recsys=debug"
        }
    };
    let filter = EnvFilter::try_from_env("RALLREC_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let writer = LogWriter(console.clone());
    let color = console.colors_stderr();
    let stderr = tracing_subscriber::fmt::layer().with_ansi(color).with_writer(move || writer.clone());
    tracing_subscriber::registry()
        .with(stderr.with_filter(filter))
        .with(TaskLogs.with_filter(LevelFilter::INFO))
        .init();
}
