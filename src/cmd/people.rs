//! The people of a plan: who chose what, and what a vision-language model makes of it.

use std::path::Path;

use candle_core::DType;

use super::device::Compute;
use crate::embed::choices::{Choices, Source};
use crate::embed::people::{People, Reader};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::spec::{Plan, Precision, Users};

/// The plan's `[users]`.
fn users(plan: &Plan) -> Result<&Users> {
    plan.spec.users.as_ref().ok_or_else(|| {
        Error::Spec(format!("{}: a method asks for people, and the study has no [users]", plan.spec.name))
    })
}

/// Who chose what.
///
/// # Errors
/// As [`Choices::gather`].
pub(super) fn choices(plan: &Plan, progress: &Progress) -> Result<Choices> {
    let users = users(plan)?;
    let path = plan.data("pairs")?;
    let digest = plan.cells.iter().find_map(|cell| cell.digests.get("data/pairs"));
    let digest = digest.ok_or_else(|| {
        Error::Spec(format!("{}: no cell names the pairs that people chose between", plan.spec.name))
    })?;
    let (most, cache) = (plan.spec.data.pairs, plan.places.cache.as_path());
    Choices::gather(users, &Source { path: &path, digest, most, cache }, progress)
}

/// What is made of it for the plan's methods.
///
/// # Errors
/// As [`People::gather`].
pub(super) fn people(
    plan: &Plan,
    choices: &Choices,
    compute: &Compute,
    progress: &Progress,
) -> Result<People> {
    let profile = &plan.spec.profile;
    let folder = |model: &Path| profile.reader_in(&plan.places.assets, model);
    let dtype = match profile.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let reader = Reader { folder: &folder, place: (&compute.device, dtype), cache: &plan.places.cache };
    People::gather((users(plan)?, &plan.spec.methods), choices, &reader, &compute.workers, progress)
}
