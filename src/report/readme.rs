//! Splices outputs into a document between markers, so that its tables are what the records say.
//!
//! ```text
//! <!-- ppd:STUDY/OUTPUT -->
//! everything here is replaced
//! <!-- /ppd:STUDY/OUTPUT -->
//! ```
//!
//! `STUDY/OUTPUT/PART` takes one of the output's tables or figures alone.

use super::Output;
use crate::error::{Error, Result, nearest};

/// The document with every place of `study` filled with its output; places of other studies stay as they are. Figures
/// are linked below `figures`, a path relative to the document.
///
/// # Errors
/// Where a place has no end, or is named after no output of this study.
pub fn splice(document: &str, study: &str, outputs: &[Output], figures: &str) -> Result<String> {
    let (mut spliced, mut rest) = (String::with_capacity(document.len()), document);
    while let Some(start) = rest.find(OPEN) {
        let named = &rest[start + OPEN.len()..];
        let Some((place, after)) = named.split_once(CLOSE) else { break };
        let end = format!("<!-- /ppd:{place} -->");
        let Some(length) = after.find(&end) else {
            return Err(Error::Spec(format!(
                "the marker <!-- ppd:{place} --> has no end; write {end} below it"
            )));
        };
        let Some((of, asked)) = place.split_once('/') else {
            return Err(Error::Spec(format!(
                "the marker <!-- ppd:{place} --> names no study; write <!-- ppd:STUDY/{place} -->"
            )));
        };
        spliced += &rest[..start];
        rest = &after[length + end.len()..];
        if of != study {
            spliced += &format!("{OPEN}{place}{CLOSE}{}{end}", &after[..length]);
            continue;
        }
        let (name, part) = asked.split_once('/').map_or((asked, None), |(name, part)| (name, Some(part)));
        let Some(output) = outputs.iter().find(|output| output.name == name) else {
            let known = outputs.iter().map(|output| output.name.as_str());
            let meant = nearest(name, known.clone())
                .map_or(String::new(), |meant| format!(", did you mean {meant:?}?"));
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(Error::Spec(format!(
                "the marker <!-- ppd:{place} --> names no output of {study}{meant} (known: {known})"
            )));
        };
        let Some(text) = output.markdown(part, figures) else {
            let known = output.parts().collect::<Vec<_>>().join(", ");
            return Err(Error::Spec(format!(
                "the marker <!-- ppd:{place} --> names no part of {name} (known: {known})"
            )));
        };
        spliced += &format!("{OPEN}{place}{CLOSE}\n{}\n{end}", text.trim_end());
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
    fn the_places_of_one_study_are_replaced_and_the_rest_is_kept() {
        let place = |study: &str, text: &str| {
            format!("<!-- ppd:{study}/table1 -->{text}<!-- /ppd:{study}/table1 -->")
        };
        let (ours, theirs) =
            (place("main", "\nA caption.\n\n| head |\n| :-- |\n"), place("other", "\nkept\n"));
        let document =
            format!("before\n{}\n{theirs}\n{}\nafter", place("main", "\nold\n"), place("main", ""));
        let once = splice(&document, "main", &outputs(), "figures").unwrap();
        assert_eq!(once, format!("before\n{ours}\n{theirs}\n{ours}\nafter"));
        assert_eq!(splice(&once, "main", &outputs(), "figures").unwrap(), once, "again changes nothing");
    }

    #[test]
    fn a_part_of_an_output_can_stand_alone() {
        let mut outputs = outputs();
        let other = Table::new("Another caption.", vec![("head".into(), Kind::Words)]);
        outputs[0].tables.push(("rows".into(), other));
        let place = |text: &str| format!("<!-- ppd:main/table1/rows -->{text}<!-- /ppd:main/table1/rows -->");
        let spliced = splice(&place(""), "main", &outputs, "figures").unwrap();
        assert_eq!(spliced, place("\nAnother caption.\n\n| head |\n| :-- |\n"));
    }

    #[test]
    fn faulty_markers_are_refused() {
        let refusal = |document: &str| splice(document, "main", &outputs(), "").unwrap_err().to_string();
        let error = refusal("<!-- ppd:main/table1 -->");
        assert!(error.contains("<!-- /ppd:main/table1 -->"), "{error}");
        let error = refusal("<!-- ppd:main/tabel1 --><!-- /ppd:main/tabel1 -->");
        assert!(error.contains("did you mean \"table1\""), "{error}");
        let error = refusal("<!-- ppd:main/table1/rows --><!-- /ppd:main/table1/rows -->");
        assert!(error.contains("no part of table1 (known: table1)"), "{error}");
        let error = refusal("<!-- ppd:table1 --><!-- /ppd:table1 -->");
        assert!(error.contains("STUDY/table1"), "{error}");
    }
}
