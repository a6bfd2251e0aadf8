//! What a template says of each item: the title texts of `embed` and the requests of `describe`.

use crate::{StageError, columns::Table};
use rallrec_core::mapping::ITEM_COLUMNS;
use rallrec_recsys::prompt::ItemTemplate;

/// A template, and the columns that fill it.
pub(crate) struct ItemTexts<'a> {
    template: ItemTemplate,
    title: Vec<&'a str>,
    genre: Vec<&'a str>,
    year: Vec<Option<i32>>,
    further: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> ItemTexts<'a> {
    /// Reads the template that stands under `with.PARAMETER`.
    pub(crate) fn new(parameter: &str, template: &str, items: &Table<'a>) -> Result<Self, StageError> {
        let further = items.further(ITEM_COLUMNS)?;
        let names: Vec<&str> = further.iter().map(|(name, _)| *name).collect();
        let template = ItemTemplate::parse(template, &names);
        let template = template.map_err(|e| StageError::Invalid(format!("with.{parameter}: {e}")))?;
        let (title, genre, year) = (items.text("title")?, items.text("genre")?, items.i32_opt("year")?);
        Ok(Self { template, title, genre, year, further })
    }

    /// The text of an item.
    pub(crate) fn of(&self, row: usize) -> String {
        let further: Vec<&str> = self.further.iter().map(|(_, texts)| texts[row]).collect();
        self.template.fill(self.title[row], self.genre[row], self.year[row], &further)
    }
}
