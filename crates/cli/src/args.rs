//! The command line's grammar: what can be asked. What it does is in the modules of the same names.

use crate::console::ColorChoice;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a stage failed; of compare: the run is worse than its baseline
  2    invalid input: a pipeline, an option, or a file of the wrong content
  3    a file or service that is needed cannot be reached
  4    of compare: too few samples to tell
  130  interrupted; the run can be resumed

Start with: rallrec doctor, then rallrec run pipelines/quickstart.yaml";

/// Runs the RALLRec+ recommendation method over whole data sets.
#[derive(Debug, Parser)]
#[command(name = "rallrec", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Folder for sources, the store and what else is kept on this machine
    #[arg(long, global = true, env = "RALLREC_HOME", default_value = "./.rallrec", value_name = "FOLDER")]
    pub home: PathBuf,
    /// The artifact store, if not HOME/store: a folder, or s3://BUCKET/PREFIX
    #[arg(long, global = true, env = "RALLREC_STORE", value_name = "PLACE")]
    pub store: Option<PathBuf>,
    /// Log more to stderr; twice for debugging. RALLREC_LOG takes a filter, for example `rallrec_worker=trace`
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to colour
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub color: ColorChoice,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline in this process, reusing what the store holds; resumes an unfinished run of the same plan
    Run(RunArgs),
    /// Run a pipeline for every point of its `sweep:`; what points share is computed once
    Sweep(SweepArgs),
    /// Check pipelines and print every error with its place
    Validate {
        /// The files
        #[arg(required = true, value_name = "PIPELINE")]
        pipelines: Vec<PathBuf>,
        /// Override a value under `params:`
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Show a pipeline's stages and tasks, what would be reused, and why the rest would not
    Plan {
        /// The pipeline and its overrides
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say why a stage of a run could not reuse an earlier result: which fields of its key changed
    Explain {
        /// The run: an id, the beginning of one, or `last`
        run: String,
        /// The stage's name
        stage: String,
        /// The run to compare with; by default the latest earlier run of the same pipeline
        #[arg(long, value_name = "RUN")]
        against: Option<String>,
        /// The cluster, if not this machine's store is meant
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the runs in the store
    Runs {
        /// Print JSON, one line a run
        #[arg(long)]
        json: bool,
        /// The cluster, if not this machine's store is meant
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Print the metrics of a run, or write a whole report of some runs
    Report(ReportArgs),
    /// Say whether a run is worse than a baseline, by a gate file: for nightly re-evaluations
    Compare(CompareArgs),
    /// List what a run's tasks made: keys, rows, bytes
    Artifacts {
        /// The run: an id, the beginning of one, or `last`
        run: String,
        /// Of one stage only
        stage: Option<String>,
        /// Print JSON, one line an artifact
        #[arg(long)]
        json: bool,
        /// The cluster, if not this machine's store is meant
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Print what a run's tasks logged
    Logs(LogsArgs),
    /// Print the JSON Schema of pipeline files, for editors
    Schema,
    /// Data sets: list them, or pull one
    Data {
        /// What to do with them
        #[command(subcommand)]
        action: SourceAction,
    },
    /// Language models: list them, or pull one
    Models {
        /// What to do with them
        #[command(subcommand)]
        action: SourceAction,
    },
    /// Check this machine, or what a service of a cluster needs: say what is missing, and what mends it
    Doctor {
        /// The TOML file of a coordinator or of a worker: check what that service needs
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run a coordinator of a cluster, until it is told to stop
    Coordinator {
        /// Its TOML file
        #[arg(long, value_name = "FILE", default_value = "coordinator.toml")]
        config: PathBuf,
    },
    /// Run a worker of a cluster; told to stop, it ends what it has begun first
    Worker {
        /// Its TOML file
        #[arg(long, value_name = "FILE", default_value = "worker.toml")]
        config: PathBuf,
    },
    /// Hand a pipeline to a cluster; an unfinished run of the same plan goes on
    Submit(SubmitArgs),
    /// List a cluster's runs, or show one
    Status {
        /// The run: an id, the beginning of one, or `last`; all without it
        run: Option<String>,
        /// The cluster
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show a cluster's run until it ends, and end as it does
    Watch {
        /// The run: an id, the beginning of one, or `last`
        run: String,
        /// Print events as JSON, one a line
        #[arg(long)]
        json: bool,
        /// The cluster
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Ask a cluster's run to stop: running tasks end, nothing new begins
    Cancel {
        /// The run: an id, the beginning of one, or `last`
        run: String,
        /// The cluster
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Go on with a cluster's run that failed or was cancelled: what failed is tried again, what is done is kept
    Retry {
        /// The run: an id, the beginning of one, or `last`
        run: String,
        /// Said for readers: only what failed is ever tried again
        #[arg(long)]
        failed: bool,
        /// The cluster
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List a cluster's workers
    Workers(ClusterArgs),
    /// Ask a worker to take no further task
    Drain {
        /// Its name, as `workers` lists it
        worker: String,
        /// The cluster
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Remove what no kept run can reach; says what that is, and removes it with --delete
    Gc(GcArgs),
    /// Clusters by name: list them, or choose the one that commands mean
    Context {
        /// What to do with them
        #[command(subcommand)]
        action: ContextAction,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// A pipeline and its overrides.
#[derive(Clone, Debug, Args)]
pub struct PipelineArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Override a value under `params:`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The pipeline and its overrides.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Never pull a source; fail if one is missing
    #[arg(long)]
    pub offline: bool,
    /// Tasks computed at the same time; by default half the cores, since a task uses several itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// Where to compute: auto, cpu, or cuda:N
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: String,
    /// Begin a new run even if an unfinished one could be resumed
    #[arg(long)]
    pub new: bool,
    /// Print events as JSON, one a line, in place of progress and the table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `sweep`.
#[derive(Clone, Debug, Args)]
pub struct SweepArgs {
    /// The pipeline and its overrides; an axis of the sweep counts more.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Print the points and run nothing
    #[arg(long)]
    pub list: bool,
    /// Points run at once: that many are run to their end before the next begin. All of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_parallel: Option<u32>,
    /// Folder for the table as CSV and JSON; by default HOME/sweeps/NAME of the pipeline
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
    /// Never pull a source; fail if one is missing
    #[arg(long)]
    pub offline: bool,
    /// Tasks computed at the same time; by default half the cores, since a task uses several itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// Where to compute: auto, cpu, or cuda:N
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: String,
    /// Print events as JSON, one a line, in place of progress and the table
    #[arg(long)]
    pub json: bool,
}

/// Which cluster.
#[derive(Clone, Debug, Default, Args)]
pub struct ClusterArgs {
    /// Addresses of a cluster's coordinators, separated by commas [env: RALLREC_COORDINATOR]
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    /// A cluster by its name in the config file [env: RALLREC_CONTEXT]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// File with the certificates to trust in place of the system's [env: RALLREC_CA]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// File with the token [env: RALLREC_TOKEN_FILE; RALLREC_TOKEN is the token itself]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Arguments of `compare`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["baseline", "save"]))]
pub struct CompareArgs {
    /// The run: an id, the beginning of one, or `last`
    pub run: String,
    /// What to compare it with: a run, or a file that --save has written
    #[arg(long, value_name = "RUN|FILE", requires = "gate")]
    pub baseline: Option<String>,
    /// What may pass, a YAML file: docs/compare.md
    #[arg(long, value_name = "FILE", requires = "baseline")]
    pub gate: Option<PathBuf>,
    /// Keep the run as a baseline: what its systems predicted, as one Parquet file
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// How to print it
    #[arg(long, default_value = "table", requires = "baseline")]
    pub format: CompareFormat,
    /// Write JUnit XML there as well, for CI systems
    #[arg(long, value_name = "FILE", requires = "baseline")]
    pub junit: Option<PathBuf>,
    /// The cluster, if not this machine's store is meant
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The run: an id, the beginning of one, or `last`
    pub run: String,
    /// Of one stage only, or of one of its shards
    #[arg(value_name = "STAGE[/SHARD]", value_parser = task)]
    pub task: Option<(String, Option<u32>)>,
    /// Go on with what comes until the run ends
    #[arg(short, long)]
    pub follow: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// The cluster, if not this machine's store is meant
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `gc`.
#[derive(Clone, Debug, Args)]
pub struct GcArgs {
    /// Keep the latest N done runs of each pipeline, and what came after them
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep runs that ended within so many days
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
    /// Remove this run in any case; an id, unless it is active
    #[arg(long, value_name = "RUN")]
    pub forget: Vec<String>,
    /// Remove it
    #[arg(long)]
    pub delete: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The cluster, if not this machine's store is meant
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `STAGE` or `STAGE/SHARD`.
fn task(text: &str) -> Result<(String, Option<u32>), String> {
    let wrong = || "write STAGE or STAGE/SHARD, for example score/17".to_owned();
    match text.split_once('/') {
        None if !text.is_empty() => Ok((text.to_owned(), None)),
        Some((stage, shard)) if !stage.is_empty() => Ok((stage.to_owned(), Some(shard.parse().map_err(|_| wrong())?))),
        _ => Err(wrong()),
    }
}

/// Arguments of `submit`.
#[derive(Clone, Debug, Args)]
pub struct SubmitArgs {
    /// The pipeline and its overrides.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Show the run until it ends, and end as it does
    #[arg(long)]
    pub wait: bool,
    /// With --wait, print events as JSON, one a line
    #[arg(long)]
    pub json: bool,
    /// Begin a new run even if one of the same plan is active
    #[arg(long)]
    pub new: bool,
    /// Runs of a higher priority get slots first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// Share of the slots among runs of one priority
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: u32,
    /// The cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum ContextAction {
    /// List those of the config file
    List,
    /// Make one the cluster that is meant when none is named
    Use {
        /// Its name
        name: String,
    },
}

/// What to do with sources.
#[derive(Debug, Subcommand)]
pub enum SourceAction {
    /// List those that are known, and which are here
    List {
        /// Hash the files of those that are here again
        #[arg(long)]
        verify: bool,
    },
    /// Pull one, check it against its pinned SHA-256, and keep it under HOME/sources
    Pull {
        /// Its name in the catalogue; for a model also hf:OWNER/REPO[@REVISION][/FILE] or s3://BUCKET/PATH
        name: String,
        /// Take the files from here: a folder, a .zip, a .tar.gz or .tar.xz, or the one file itself
        #[arg(long, value_name = "PATH")]
        from: Option<PathBuf>,
        /// If it is here already, hash its files again
        #[arg(long)]
        verify: bool,
    },
}

/// How a comparison is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompareFormat {
    /// Lines for a terminal.
    Table,
    /// Markdown, for a pull request.
    Md,
    /// JSON.
    Json,
}

/// What is reported.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// The runs: an id, the beginning of one, or `last`
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,
    /// How to print the metrics of one run
    #[arg(long, default_value = "md", conflicts_with = "out")]
    pub format: ReportFormat,
    /// Write report.html, report.md, report.csv and report.json into this folder instead
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// A folder that `rallrec sweep` wrote, for the figures of alpha and eps
    #[arg(long, value_name = "FOLDER")]
    pub sweep: Vec<PathBuf>,
    /// The cluster, if not this machine's store is meant
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Markdown.
    Md,
    /// JSON, one object a metric.
    Json,
}

fn device(text: &str) -> Result<String, String> {
    let number = text.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok());
    if number || text == "auto" || text == "cpu" {
        Ok(text.to_owned())
    } else {
        Err("use auto, cpu, or cuda:N, for example cuda:0".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn devices_are_checked_early() {
        assert!(["auto", "cpu", "cuda:0", "cuda:12"].iter().all(|d| device(d).is_ok()));
        assert!(["gpu", "cuda", "cuda:", "cuda:x"].iter().all(|d| device(d).is_err()));
    }

    #[test]
    fn exit_codes_stand_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("130  interrupted"), "{help}");
    }

    #[test]
    fn tasks_are_named_by_stage_and_shard() {
        assert_eq!(task("score"), Ok(("score".into(), None)));
        assert_eq!(task("score/17"), Ok(("score".into(), Some(17))));
        assert!(["", "/1", "score/", "score/x"].iter().all(|t| task(t).is_err()));
    }

    #[test]
    fn overrides_repeat() {
        let cli =
            Cli::try_parse_from(["rallrec", "run", "p.yaml", "--set", "a=1", "--set", "b=2", "--home", "h"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not a run") };
        assert_eq!(run.pipeline.set, ["a=1", "b=2"]);
        assert_eq!(cli.global.home, PathBuf::from("h"));
    }
}
