//! A study of identification set against this disk: a flat list of cells, each with an id that hashes its inputs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::{Features, Identification, Method, RANK, Separation, Setting, World, rank_by, row_method, score};
use crate::error::Result;
use crate::hub::{self, Hub};
use crate::provenance::file_digest;
use crate::record;
use crate::spec::plan::{Places, SCHEMA};
use crate::spec::source::Problems;
use crate::spec::users::there;
use crate::units::Digest;

/// One kind of features in one world, under one separation: the unit of work and of records.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Its name on disk; the last part hashes its inputs.
    pub id: String,
    /// The features.
    pub method: Method,
    /// The world.
    pub world: World,
    /// The separation.
    pub separation: Separation,
    /// What its id hashes.
    pub config: serde_json::Value,
    /// The digests of weights and data that it depends on.
    pub digests: BTreeMap<String, Digest>,
    /// The folder of its record.
    pub folder: PathBuf,
}

impl Cell {
    /// Whether its record is complete.
    pub fn is_complete(&self) -> bool {
        record::read_header(&self.folder).is_ok_and(|header| header.finished.is_some())
    }

    /// What its rows are called: the features with the world and the separation.
    pub fn row_method(&self) -> String {
        row_method(&self.method.name, self.world, self.separation)
    }

    /// The scores of its rows: the true user's rank by each head, or by the known utilities, and what the features know.
    pub fn scores(&self, study: &Identification) -> Vec<String> {
        let ranks: Vec<String> = match self.method.features {
            Features::KnownUtilities => vec![RANK.to_owned()],
            _ => study.heads.iter().map(|head| rank_by(head.head)).collect(),
        };
        let known = study.knowledge.iter().flat_map(|_| score::KNOWLEDGE).map(str::to_owned);
        known.chain(ranks).collect()
    }
}

impl Identification {
    /// Its cells on this disk.
    ///
    /// # Errors
    /// Where files of weights or data are missing or damaged, all of them at once.
    pub fn cells(&self, places: &Places) -> Result<Vec<Cell>> {
        let mut problems = Problems::default();
        let cells = self.cells_of(places, &mut problems)?;
        problems.finish()?;
        Ok(cells)
    }

    /// The same for looking only: what is wanting stands beside cells whose ids are then provisional.
    ///
    /// # Errors
    /// Where the study has no profile.
    pub fn outline(&self, places: &Places) -> Result<(Vec<Cell>, Vec<String>)> {
        let mut wanting = Problems::default();
        let cells = self.cells_of(places, &mut wanting)?;
        Ok((cells, wanting.into_lines()))
    }

    fn cells_of(&self, places: &Places, problems: &mut Problems) -> Result<Vec<Cell>> {
        let profile = self.profile()?;
        let assets = places.assets.as_path();
        let mut digests: BTreeMap<String, Option<Digest>> = BTreeMap::new();
        let mut digest = |name: String, of: &dyn Fn() -> Result<Digest>| -> Option<(String, Digest)> {
            let known = digests.entry(name.clone()).or_insert_with(|| problems.take(of()));
            known.clone().map(|digest| (name, digest))
        };
        let folder = self.folder(&places.results);
        let mut cells = Vec::new();
        for &world in &self.users.worlds {
            for &separation in &self.groups.separations {
                let here = Setting { world, separation };
                let looked_at = |method: &&Method| method.only.is_empty() || method.only.contains(&here);
                for method in self.methods.iter().filter(looked_at) {
                    let pairs = || match profile.artefacts.contains_key("pairs") {
                        true => Ok(profile.locate("pairs", &Hub::from_env(hub::LOCK)?)?.digest()),
                        false => file_digest(&profile.data_in(assets, "pairs")?),
                    };
                    let mut needed: BTreeMap<String, Digest> =
                        digest("data/pairs".to_owned(), &pairs).into_iter().collect();
                    let model = match &method.features {
                        Features::Embedding { model, .. } => {
                            Some(model.as_ref().unwrap_or(&self.embedding.model))
                        }
                        Features::ClipDifference { model } => Some(model),
                        Features::KnownUtilities => None,
                    };
                    if let Some(model) = model {
                        let file = assets.join(model).join("model.safetensors");
                        let embeds = matches!(method.features, Features::Embedding { .. });
                        let of = || match model.to_str().filter(|_| profile.names_artefact(model)) {
                            Some(name) => Ok(profile.locate(name, &Hub::from_env(hub::LOCK)?)?.digest()),
                            None => {
                                if embeds {
                                    there(&file)?;
                                }
                                file_digest(&file)
                            }
                        };
                        needed.extend(digest(format!("weights/{}", model.display()), &of));
                    }
                    let heads =
                        if method.features == Features::KnownUtilities { &[][..] } else { &self.heads };
                    let config = json!({
                        "schema": SCHEMA,
                        "users": {"seed": self.users.seed, "count": self.users.count,
                                  "pairs_per_user": self.users.pairs_per_user, "world": world},
                        "groups": {"seed": self.groups.seed, "shots": self.groups.shots,
                                   "learned": self.groups.learned, "asked": self.groups.asked,
                                   "separation": separation},
                        "features": method.features,
                        "embedding": match method.features {
                            Features::Embedding { .. } => json!({
                                "max_new_tokens": self.embedding.max_new_tokens,
                                "template": Digest::of(self.embedding.words.few_shot().0.as_bytes()),
                            }),
                            _ => serde_json::Value::Null,
                        },
                        "heads": heads,
                        "knowledge": self.knowledge,
                        "digests": needed,
                    });
                    let config = profile.complete(config);
                    let name = row_method(&method.name, world, separation).replace(' ', ".");
                    let id = format!("{name}.{}", &Digest::of(config.to_string().as_bytes()).hex()[..12]);
                    cells.push(Cell {
                        folder: folder.join("cells").join(&id),
                        id,
                        method: method.clone(),
                        world,
                        separation,
                        config,
                        digests: needed,
                    });
                }
            }
        }
        Ok(cells)
    }
}
