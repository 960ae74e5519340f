//! Images in the cache, each under its noise seed and index: what was sampled once is not sampled again.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::generate::Request;
use crate::image::{self, Format};
use crate::pixels::Image;
use crate::record::replace_file;
use crate::spec::{Plan, Prompts};
use crate::units::Digest;

/// The images of one model under one way of sampling.
pub(super) struct ImageStore {
    folder: PathBuf,
}

impl ImageStore {
    /// The store of images that follow from `inputs` and their own seeds; `kind` names its folder in the cache.
    pub(super) fn new(cache: &Path, kind: &str, inputs: &impl Serialize) -> Self {
        let inputs = serde_json::to_string(inputs).expect("digests and settings are plain data");
        Self { folder: cache.join(kind).join(Digest::of(inputs.as_bytes()).short()) }
    }

    /// The store of the base's images of a plan, against which every method's drift is measured.
    pub(super) fn of_base(plan: &Plan) -> Self {
        let digests = plan.cells.first().map(|cell| &cell.digests);
        // What people's own prompts are follows from their pairs and from who is looked at.
        let prompts = match plan.spec.data.prompts {
            Prompts::Own => "data/pairs".to_owned(),
            other => format!("data/{}", other.name()),
        };
        // Where there is no codec the decoder's parts are named instead.
        let inputs: Vec<Option<&Digest>> = [
            "weights/denoiser",
            "weights/text-encoder",
            "weights/codec",
            "weights/decoder",
            "weights/vqgan",
            &prompts,
        ]
        .iter()
        .map(|name| digests.and_then(|digests| digests.get(*name)))
        .filter(Option::is_some)
        .collect();
        let mut from = serde_json::json!({"schema": 2, "inputs": inputs, "sample": plan.spec.sample});
        if let Some(own) = plan.spec.own_prompts() {
            from["own_prompts"] = own;
        }
        Self::new(&plan.places.cache, "base-images", &plan.spec.profile.complete(from))
    }

    fn path(&self, request: &Request) -> PathBuf {
        self.folder.join(format!("{}-{}.png", request.seed.get(), request.index))
    }

    fn put(&self, requests: &[Request], images: &[Image]) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        for (request, image) in requests.iter().zip(images) {
            replace_file(&self.path(request), &image::encode(image, Format::Png)?)?;
        }
        Ok(())
    }

    /// The images of these requests; `make` makes those that are not kept yet.
    pub(super) fn get(
        &self,
        requests: &[Request],
        make: impl FnOnce(&[Request]) -> Result<Vec<Image>>,
    ) -> Result<Vec<Image>> {
        let missing: Vec<Request> =
            requests.iter().filter(|request| !self.path(request).exists()).cloned().collect();
        if !missing.is_empty() {
            self.put(&missing, &make(&missing)?)?;
        }
        requests.iter().map(|request| image::read(self.path(request))).collect()
    }
}
