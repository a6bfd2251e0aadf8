//! Parts that several messages have.

use crate::{WireError, v1};
use rallrec_core::{
    ids::RowRange,
    kind::{Mode, StageKind},
    models::PinnedModel,
    plan::PinnedSource,
    task::FailureClass,
};

pub(crate) fn rows_out(rows: RowRange) -> v1::RowRange {
    v1::RowRange { start: rows.start, end: rows.end }
}

pub(crate) fn rows_in(rows: v1::RowRange) -> Result<RowRange, WireError> {
    if rows.start > rows.end {
        return Err(WireError::Unknown { field: "rows", value: format!("{}..{}", rows.start, rows.end) });
    }
    Ok(RowRange { start: rows.start, end: rows.end })
}

pub(crate) fn source_out(source: &PinnedSource) -> v1::PinnedSource {
    v1::PinnedSource { name: source.name.clone(), source: source.source.clone(), digest: source.digest.clone() }
}

pub(crate) fn source_in(source: v1::PinnedSource) -> PinnedSource {
    PinnedSource { name: source.name, source: source.source, digest: source.digest }
}

pub(crate) fn model_out(model: &PinnedModel) -> v1::Model {
    let place = match model {
        PinnedModel::Local { files, precision } => v1::model::Place::Local(v1::LocalModel {
            files: Some(source_out(files)),
            precision: precision.word().to_owned(),
        }),
        PinnedModel::Remote { name, remote, tokenizer } => v1::model::Place::Remote(v1::RemoteModel {
            name: name.clone(),
            // Plain numbers and texts: this can't fail, and an empty text would not be read.
            settings_json: serde_json::to_string(remote).unwrap_or_default(),
            tokenizer: tokenizer.as_ref().map(source_out),
        }),
    };
    v1::Model { place: Some(place) }
}

pub(crate) fn model_in(model: v1::Model) -> Result<PinnedModel, WireError> {
    match model.place.ok_or(WireError::Missing { field: "model.place" })? {
        v1::model::Place::Local(local) => {
            let files = local.files.map(source_in).ok_or(WireError::Missing { field: "model.local.files" })?;
            let precision = serde_json::from_value(local.precision.as_str().into())
                .map_err(|_| WireError::Unknown { field: "model.local.precision", value: local.precision })?;
            Ok(PinnedModel::Local { files, precision })
        }
        v1::model::Place::Remote(remote) => Ok(PinnedModel::Remote {
            name: remote.name,
            remote: serde_json::from_str(&remote.settings_json).map_err(WireError::Params)?,
            tokenizer: remote.tokenizer.map(source_in),
        }),
    }
}

pub(crate) fn mode_out(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Drive => v1::Mode::Drive,
        Mode::Aligned => v1::Mode::Aligned,
        Mode::Whole => v1::Mode::Whole,
    }
}

pub(crate) fn mode_in(mode: i32) -> Result<Mode, WireError> {
    match v1::Mode::try_from(mode) {
        Ok(v1::Mode::Drive) => Ok(Mode::Drive),
        Ok(v1::Mode::Aligned) => Ok(Mode::Aligned),
        Ok(v1::Mode::Whole) => Ok(Mode::Whole),
        Ok(v1::Mode::Unspecified) | Err(_) => Err(WireError::Unknown { field: "mode", value: mode.to_string() }),
    }
}

pub(crate) fn kind_in(name: String) -> Result<StageKind, WireError> {
    let kind = StageKind::ALL.iter().copied().find(|kind| kind.info().name == name);
    kind.ok_or(WireError::Unknown { field: "kind", value: name })
}

pub(crate) fn class_out(class: FailureClass) -> v1::FailureClass {
    match class {
        FailureClass::Transient => v1::FailureClass::Transient,
        FailureClass::Resource => v1::FailureClass::Resource,
        FailureClass::Permanent => v1::FailureClass::Permanent,
        FailureClass::Lost => v1::FailureClass::Lost,
        FailureClass::Unavailable => v1::FailureClass::Unavailable,
    }
}

pub(crate) fn class_in(class: i32) -> Result<FailureClass, WireError> {
    match v1::FailureClass::try_from(class) {
        Ok(v1::FailureClass::Transient) => Ok(FailureClass::Transient),
        Ok(v1::FailureClass::Resource) => Ok(FailureClass::Resource),
        Ok(v1::FailureClass::Permanent) => Ok(FailureClass::Permanent),
        Ok(v1::FailureClass::Lost) => Ok(FailureClass::Lost),
        Ok(v1::FailureClass::Unavailable) => Ok(FailureClass::Unavailable),
        Ok(v1::FailureClass::Unspecified) | Err(_) => {
            Err(WireError::Unknown { field: "class", value: class.to_string() })
        }
    }
}

/// A text that must not be empty.
pub(crate) fn text_in(field: &'static str, text: String) -> Result<String, WireError> {
    if text.is_empty() { Err(WireError::Missing { field }) } else { Ok(text) }
}
