//! Contexts: clusters by name, in a file of the person's own; and `context`, which lists and chooses them.
//!
//! What is named on the command line goes before the environment, and that before the file. Who names coordinators
//! gets nothing of a context: its token is for its own coordinators.

use super::config;
use crate::{args::ClusterArgs, console::Console, failure::Failure, home::write_atomically};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where a coordinator is when nobody says.
const DEFAULT: &str = "http://127.0.0.1:7070";

/// The file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFile {
    /// The context that is meant when none is named.
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// Addresses of its coordinators.
    coordinators: Vec<String>,
    /// File with the certificates to trust in place of the system's.
    ca: Option<PathBuf>,
    /// File with the token.
    token_file: Option<PathBuf>,
}

/// How a cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) coordinators: Vec<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
    /// Whether the command line or the environment named it.
    pub(super) explicit: bool,
}

/// The cluster that a command means.
///
/// # Errors
/// When the file is wrong, or has no such context.
pub(super) fn choose(args: &ClusterArgs) -> Result<Chosen, Failure> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    choose_from(args, &environment, path(&environment))
}

fn choose_from(
    args: &ClusterArgs,
    environment: &dyn Fn(&str) -> Option<String>,
    file: Option<PathBuf>,
) -> Result<Chosen, Failure> {
    let ca = args.ca.clone().or_else(|| environment("RALLREC_CA").map(PathBuf::from));
    let token_file = args.token_file.clone().or_else(|| environment("RALLREC_TOKEN_FILE").map(PathBuf::from));
    let addressed = |addresses: &str, explicit| {
        let coordinators = addresses.split(',').map(|a| a.trim().to_owned()).filter(|a| !a.is_empty()).collect();
        Chosen { coordinators, ca: ca.clone(), token_file: token_file.clone(), explicit }
    };
    if let Some(addresses) = &args.coordinator {
        return Ok(addressed(addresses, true));
    }
    let mut named = args.context.clone();
    if named.is_none() {
        if let Some(addresses) = environment("RALLREC_COORDINATOR") {
            return Ok(addressed(&addresses, true));
        }
        named = environment("RALLREC_CONTEXT");
    }
    let explicit = named.is_some();
    let (path, contexts) = read(file)?;
    let Some(name) = named.or_else(|| contexts.current.clone()) else { return Ok(addressed(DEFAULT, false)) };
    let context = contexts.find(&name, &path)?;
    // Paths mean the same wherever the command is called.
    let beside = |file: &PathBuf| path.parent().unwrap_or(Path::new("")).join(file);
    Ok(Chosen {
        coordinators: context.coordinators.clone(),
        ca: ca.or_else(|| context.ca.as_ref().map(beside)),
        token_file: token_file.or_else(|| context.token_file.as_ref().map(beside)),
        explicit,
    })
}

impl ContextFile {
    fn find(&self, name: &str, path: &Path) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            let known = match self.contexts.keys().map(String::as_str).collect::<Vec<_>>().join(", ") {
                known if known.is_empty() => "none".to_owned(),
                known => known,
            };
            Failure::Invalid(format!("{} has no context `{name}`; it has {known}", path.display()))
        })
    }
}

/// The file's place and content; empty when there is none.
fn read(path: Option<PathBuf>) -> Result<(PathBuf, ContextFile), Failure> {
    let path = path.ok_or_else(|| {
        Failure::Invalid(
            "there is no home directory for rallrec's config.toml; name the file with RALLREC_CONFIG".into(),
        )
    });
    match path {
        Ok(path) if path.exists() => Ok((path.clone(), config::read(&path)?)),
        Ok(path) => Ok((path, ContextFile::default())),
        Err(_) => Ok((PathBuf::from("config.toml"), ContextFile::default())),
    }
}

/// Where the file is, by the platform's convention.
fn path(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    if let Some(path) = environment("RALLREC_CONFIG") {
        return Some(PathBuf::from(path));
    }
    let folder = if cfg!(windows) {
        PathBuf::from(environment("APPDATA")?)
    } else if cfg!(target_os = "macos") {
        PathBuf::from(environment("HOME")?).join("Library/Application Support")
    } else {
        environment("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(environment("HOME")?).join(".config")))?
    };
    Some(folder.join("rallrec").join("config.toml"))
}

fn own_path() -> Result<PathBuf, Failure> {
    let found = path(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    found.ok_or_else(|| Failure::Invalid("there is no home directory; name the file with RALLREC_CONFIG".into()))
}

/// Lists the contexts.
///
/// # Errors
/// When the file is wrong.
pub fn list(console: &Console) -> Result<(), Failure> {
    let (path, contexts) = read(Some(own_path()?))?;
    if contexts.contexts.is_empty() {
        console.note(&format!("{} has no contexts; docs/cluster.md says what one looks like", path.display()));
    }
    for (name, context) in &contexts.contexts {
        let mark = if contexts.current.as_ref() == Some(name) { "*" } else { " " };
        console.print(&format!("{mark} {name}  {}", context.coordinators.join(",")));
    }
    Ok(())
}

/// Makes a context the one that is meant when none is named. The file stays as it was otherwise.
///
/// # Errors
/// When there is no such context, or the file is wrong or cannot be written.
pub fn choose_context(name: &str, console: &Console) -> Result<(), Failure> {
    let path = own_path()?;
    let (path, contexts) = read(Some(path))?;
    contexts.find(name, &path)?;
    let failed = |e: std::io::Error| Failure::Unreachable(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    write_atomically(&path, with_current(&text, name).as_bytes()).map_err(failed)?;
    console.note(&format!("commands go to {name} unless told otherwise"));
    Ok(())
}

/// The text with another `current`: before the first table it is the top's.
fn with_current(text: &str, name: &str) -> String {
    let line = format!("current = {}", toml::Value::String(name.to_owned()));
    let mut lines: Vec<&str> = text.lines().collect();
    let top = lines.iter().position(|l| l.trim_start().starts_with('[')).unwrap_or(lines.len());
    let is_current =
        |l: &&str| l.trim_start().strip_prefix("current").is_some_and(|rest| rest.trim_start().starts_with('='));
    match lines[..top].iter().position(is_current) {
        Some(at) => lines[at] = &line,
        None => lines.insert(0, &line),
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\ncurrent = \"near\"\n[contexts.near]\ncoordinators = [\"http://127.0.0.1:1\"]\n[contexts.far]\ncoordinators = [\"https://a:7070\", \"https://b:7070\"]\nca = \"ca.pem\"\ntoken_file = \"/t\"\n";

    fn args(coordinator: Option<&str>, context: Option<&str>) -> ClusterArgs {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ClusterArgs { coordinator: owned(coordinator), context: owned(context), ca: None, token_file: None }
    }

    fn chosen(args: &ClusterArgs, environment: &[(&str, &str)], text: &str) -> Result<Chosen, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let variable = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        choose_from(args, &variable, Some(path)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_goes_before_the_environment_and_that_before_the_file() {
        let (c, x) = (("RALLREC_COORDINATOR", "http://c:1, http://d:1"), ("RALLREC_CONTEXT", "far"));
        let first = |args: &ClusterArgs, environment: &[(&str, &str)]| {
            let chosen = chosen(args, environment, FILE).unwrap();
            (chosen.coordinators[0].clone(), chosen.explicit)
        };
        assert_eq!(first(&args(Some("http://o:1"), Some("far")), &[c, x]), ("http://o:1".into(), true));
        assert_eq!(first(&args(None, Some("near")), &[c, x]), ("http://127.0.0.1:1".into(), true));
        assert_eq!(first(&args(None, None), &[c, x]), ("http://c:1".into(), true));
        assert_eq!(first(&args(None, None), &[x]), ("https://a:7070".into(), true));
        assert_eq!(first(&args(None, None), &[]), ("http://127.0.0.1:1".into(), false));
        let none = chosen(&args(None, None), &[], "").unwrap();
        assert_eq!((none.coordinators, none.explicit), (vec![DEFAULT.to_owned()], false));
    }

    #[test]
    fn a_context_s_token_is_for_its_own_coordinators() {
        let far = chosen(&args(None, Some("far")), &[], FILE).unwrap();
        assert_eq!(far.token_file, Some("/t".into()));
        assert!(far.ca.is_some_and(|ca| ca.is_absolute() && ca.ends_with("ca.pem")), "beside the file");
        let other = chosen(&args(Some("http://o:1"), Some("far")), &[], FILE).unwrap();
        assert_eq!((other.token_file, other.ca), (None, None));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let unknown = chosen(&args(None, Some("farr")), &[], FILE).unwrap_err();
        assert!(unknown.contains("config.toml has no context `farr`; it has far, near"), "{unknown}");
        let key = chosen(&args(None, None), &[], "current = \"a\"\n[contexts.a]\ncoordinator = \"x\"\n").unwrap_err();
        assert!(key.contains("config.toml:3:1: unknown field `coordinator`"), "{key}");
    }

    #[test]
    fn the_current_context_is_replaced_and_the_rest_stays() {
        let text = with_current(FILE, "far");
        assert_eq!(text, FILE.replace("current = \"near\"", "current = \"far\""));
        let added = with_current("[contexts.far]\ncurrent_of = 1\n", "far");
        assert_eq!(added, "current = \"far\"\n[contexts.far]\ncurrent_of = 1\n");
    }

    #[test]
    fn the_file_is_where_the_platform_has_such_files() {
        let variable = |name: &str| match name {
            "HOME" => Some("/home/a".to_owned()),
            _ => None,
        };
        if cfg!(target_os = "linux") {
            assert_eq!(path(&variable), Some("/home/a/.config/rallrec/config.toml".into()));
        }
        assert_eq!(path(&|_| Some("/c.toml".into())), Some("/c.toml".into()));
        assert_eq!(path(&|_| None), None);
    }
}
