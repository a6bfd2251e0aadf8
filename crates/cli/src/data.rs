//! `data` and `models`: the catalogue on the command line.

use crate::{
    args::SourceAction,
    console::{Console, Mark, bytes, columns},
    failure::Failure,
    pull_view::PullView,
    sources::{Role, SourceError, Sources, is_remote},
};

/// Does what `data …` or `models …` asks.
///
/// # Errors
/// See [`SourceError`].
pub fn act(sources: &Sources, role: Role, action: &SourceAction, console: &Console) -> Result<(), Failure> {
    match action {
        SourceAction::List { verify } => list(sources, role, *verify, console),
        SourceAction::Pull { name, from, verify } => {
            let right_role = if is_remote(name) { Role::Model } else { sources.entry(name)?.role };
            if right_role != role {
                let right = right_role.command();
                return Err(Failure::Invalid(format!("`{name}` is pulled with: rallrec {right} pull {name}")));
            }
            if from.is_some() {
                sources.takes_from(name)?;
            }
            if let Some(record) = sources.pulled(name, *verify)? {
                let checked = if *verify { "its SHA-256 sums are right" } else { "--verify hashes it again" };
                let folder = sources.folder(name).display().to_string();
                console.print(&format!("{name} ({}) is already in {folder}; {checked}", record.variant));
                if from.is_some() {
                    console.note("--from was not looked at; remove that folder first to take other files");
                }
                return Ok(());
            }
            let view = PullView::new(console.clone());
            sources.pull(name, from.as_deref(), &|event| view.show(event))?;
            console.print(&sources.folder(name).display().to_string());
            Ok(())
        }
    }
}

fn list(sources: &Sources, role: Role, verify: bool, console: &Console) -> Result<(), Failure> {
    let mut rows = vec![["NAME", "SIZE", "HERE", "WHAT"].map(str::to_owned).to_vec()];
    let mut changed = None;
    for entry in sources.entries(role) {
        let here = match sources.pulled(&entry.name, verify) {
            Ok(Some(record)) => record.variant,
            Ok(None) => "no".to_owned(),
            Err(error @ SourceError::Changed { .. }) => {
                changed = Some(error);
                "changed".to_owned()
            }
            Err(error) => return Err(error.into()),
        };
        rows.push(vec![entry.name.clone(), bytes(entry.bytes()), here, entry.title.clone()]);
    }
    for (i, line) in columns(&rows).iter().enumerate() {
        console.print(&if i == 0 { console.mark(Mark::Bold, line) } else { line.clone() });
    }
    for entry in sources.entries(role) {
        console.print(&console.mark(Mark::Dim, &format!("{}: {} {}", entry.name, entry.terms, entry.terms_url)));
    }
    changed.map_or(Ok(()), |error| Err(error.into()))
}
