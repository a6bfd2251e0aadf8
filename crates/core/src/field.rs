//! Settings as tables: each declared once, as a typed struct and as data for validation, JSON Schema, docs and keys.
//!
//! The tables themselves are in [`crate::params`] (stages) and [`crate::models`].

use serde_json::Value;
use std::collections::BTreeMap;

/// What a parameter does to the stage's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Part of the key of every row.
    Keyed,
    /// Part of the key of every row where it is not the default: it came to a kind that had artifacts already, whose
    /// keys stay.
    Later,
    /// Changes how many rows there are, not what is in them.
    Scope,
    /// Cannot change the output.
    Free,
}

/// Type of a parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueKind {
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// Text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of values of one type.
    List(Box<ValueKind>),
    /// Values of one type by names of the user's own.
    Map(Box<ValueKind>),
    /// Parameters of their own.
    Record(Vec<Field>),
}

/// One parameter, as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Name in the YAML file.
    pub name: &'static str,
    /// One paragraph for people: meaning, unit, source.
    pub doc: &'static str,
    /// Type of its value.
    pub kind: ValueKind,
    /// Value when it is left out.
    pub default: Value,
    /// Smallest and largest value, both allowed; for lists, of each element.
    pub range: Option<(f64, f64)>,
    /// What it does to the key.
    pub effect: Effect,
}

/// A Rust type that a parameter may have.
pub trait ParamValue {
    /// The type's name in schema and messages.
    fn kind() -> ValueKind;
}

macro_rules! param_value {
    ($($ty:ty => $kind:expr),* $(,)?) => {$(
        impl ParamValue for $ty {
            fn kind() -> ValueKind { $kind }
        }
    )*};
}
param_value!(u32 => ValueKind::Int, u64 => ValueKind::Int, f64 => ValueKind::Float, bool => ValueKind::Bool, String => ValueKind::Text);

impl<T: ParamValue> ParamValue for Vec<T> {
    fn kind() -> ValueKind {
        ValueKind::List(Box::new(T::kind()))
    }
}

impl<T: ParamValue> ParamValue for Option<T> {
    fn kind() -> ValueKind {
        T::kind()
    }
}

impl<T: ParamValue> ParamValue for Box<T> {
    fn kind() -> ValueKind {
        T::kind()
    }
}

impl<T: ParamValue> ParamValue for BTreeMap<String, T> {
    fn kind() -> ValueKind {
        ValueKind::Map(Box::new(T::kind()))
    }
}

/// Declares a closed set of words as an enum.
macro_rules! choice {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $vdoc:literal])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[doc = $vdoc])* #[serde(rename = $word)] $variant),* }
        impl $name {
            /// Its word in pipelines.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
        impl ParamValue for $name {
            fn kind() -> ValueKind { ValueKind::Choice(&[$($word),*]) }
        }
    };
}

/// Declares a kind's parameters as a struct and as a table of [`Field`]s.
macro_rules! params {
    ($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $fdoc:literal])* $field:ident: $ty:ty = $default:expr, $effect:ident $(, $lo:literal ..= $hi:literal)?;)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[doc = $fdoc])* pub $field: $ty),* }
        impl $name {
            /// The parameters as data, in the order of their declaration.
            pub fn fields() -> Vec<Field> {
                vec![$(Field {
                    name: stringify!($field),
                    doc: concat!($($fdoc, "\n"),*).trim(),
                    kind: <$ty as ParamValue>::kind(),
                    default: serde_json::json!($default),
                    range: params!(@range $($lo, $hi)?),
                    effect: Effect::$effect,
                }),*]
            }
        }
        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default.into()),* }
            }
        }
        impl $crate::field::ParamValue for $name {
            fn kind() -> $crate::field::ValueKind {
                $crate::field::ValueKind::Record(Self::fields())
            }
        }
    };
    (@range) => { None };
    (@range $lo:literal, $hi:literal) => { Some(($lo as f64, $hi as f64)) };
}
pub(crate) use {choice, params};
