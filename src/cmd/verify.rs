//! `ppd verify`: are the records what they were when they were sealed?

use std::path::PathBuf;

use serde_json::json;

use super::{Global, Verdict};
use crate::error::Error;
use crate::record;

/// What to check.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder of records [default: that of --results]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let root = arguments.folder.as_ref().unwrap_or(&global.results);
    if !root.is_dir() {
        return Err(Error::Spec(format!(
            "{}: no folder of records; name one, or make some with `ppd reproduce table1`",
            root.display()
        ))
        .into());
    }
    let (mut sealed, mut open, mut rows, mut faults) = (0, 0, 0, Vec::new());
    for folder in record::cell_folders(root)? {
        let read = record::read_cell(&folder).and_then(|cell| {
            record::read_trace(&folder)?;
            cell.0.images.iter().try_for_each(|kept| record::read_image(&folder, kept).map(drop))?;
            Ok(cell)
        });
        match read {
            Ok((header, cell_rows)) => {
                rows += cell_rows.len();
                if header.finished.is_some() { sealed += 1 } else { open += 1 }
            }
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    if global.json {
        let report = json!({"complete": sealed, "unfinished": open, "rows": rows, "faults": faults});
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}: {sealed} complete records, {open} unfinished, {rows} rows", root.display());
        faults.iter().for_each(|fault| println!("fault: {fault}"));
    }
    Ok(if faults.is_empty() { Verdict::Done } else { Verdict::DoesNotHold })
}
