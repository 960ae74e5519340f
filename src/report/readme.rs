//! Splices outputs into a document between markers, so that its tables are what the records say.
//!
//! ```text
//! <!-- ppd:table1 -->
//! everything here is replaced
//! <!-- /ppd:table1 -->
//! ```

use super::Output;
use crate::error::{Error, Result, nearest};

/// The document with every marked place filled with its output; figures are linked below `figures`, a path relative
/// to the document.
///
/// # Errors
/// Where a place has no end, or is named after no output of this study.
pub fn splice(document: &str, outputs: &[Output], figures: &str) -> Result<String> {
    let (mut spliced, mut rest) = (String::with_capacity(document.len()), document);
    while let Some(start) = rest.find(OPEN) {
        let named = &rest[start + OPEN.len()..];
        let Some((name, after)) = named.split_once(CLOSE) else { break };
        let end = format!("<!-- /ppd:{name} -->");
        let Some(length) = after.find(&end) else {
            return Err(Error::Spec(format!(
                "the marker <!-- ppd:{name} --> has no end; write {end} below it"
            )));
        };
        let Some(output) = outputs.iter().find(|output| output.name == name) else {
            let known = outputs.iter().map(|output| output.name.as_str());
            let meant = nearest(name, known.clone())
                .map_or(String::new(), |meant| format!(", did you mean {meant:?}?"));
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(Error::Spec(format!(
                "the marker <!-- ppd:{name} --> names no output{meant} (known: {known})"
            )));
        };
        spliced += &rest[..start];
        spliced += &format!("{OPEN}{name}{CLOSE}\n{}\n{end}", output.markdown(figures).trim_end());
        rest = &after[length + end.len()..];
    }
    spliced += rest;
    Ok(spliced)
}

const OPEN: &str = "<!-- ppd:";
const CLOSE: &str = " -->";

#[cfg(test)]
mod tests {
    use super::super::{Table, table::Kind};
    use super::*;

    fn outputs() -> Vec<Output> {
        let table = Table::new("A caption.", vec![("head".into(), Kind::Words)]);
        vec![Output { name: "table1".into(), tables: vec![("table1".into(), table)], ..Output::default() }]
    }

    #[test]
    fn marked_places_are_replaced_and_the_rest_is_kept() {
        let document = "before\n<!-- ppd:table1 -->\nold\n<!-- /ppd:table1 -->\nbetween\n<!-- ppd:table1 --><!-- /ppd:table1 -->\nafter";
        let filled = "<!-- ppd:table1 -->\nA caption.\n\n| head |\n| :-- |\n<!-- /ppd:table1 -->";
        let once = splice(document, &outputs(), "figures").unwrap();
        assert_eq!(once, format!("before\n{filled}\nbetween\n{filled}\nafter"));
        assert_eq!(splice(&once, &outputs(), "figures").unwrap(), once, "splicing again changes nothing");
    }

    #[test]
    fn faulty_markers_are_refused() {
        let error = splice("<!-- ppd:table1 -->", &outputs(), "").unwrap_err().to_string();
        assert!(error.contains("<!-- /ppd:table1 -->"), "{error}");
        let error =
            splice("<!-- ppd:tabel1 --><!-- /ppd:tabel1 -->", &outputs(), "").unwrap_err().to_string();
        assert!(error.contains("did you mean \"table1\""), "{error}");
    }
}
