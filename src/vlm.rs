//! A vision-language model: LLaVA-OneVision with its image processor, tokenizer and chat template, opened from a
//! repository in the layout of `llava-hf/llava-onevision-qwen2-*-ov-hf`.
//!
//! What this module does not do: choose a prompt (see `embed` and `judge`), or fetch the repository.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use crate::error::{Error, Result};
use crate::models::layout;
use crate::models::llava_onevision::{
    ChatTemplate, ChatTokenizer, Config, Decoding, GenerationConfig, ImageProcessor, Input, Layout,
    LlavaOnevision, Message, ProcessorConfig, Sampling,
};
use crate::pixels::Image;
use crate::prior::{first_there, free_memory, has_room, read_config};
use crate::units::Digest;
use crate::weights::Weights;

/// The weights of a repository, in one file or in several.
const WEIGHTS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// A frozen vision-language model and what stands around it.
#[derive(Debug, Clone)]
pub struct Vlm {
    /// The model.
    pub model: LlavaOnevision,
    /// Images to pixels.
    pub processor: ImageProcessor,
    /// Texts to token ids and back.
    pub tokenizer: ChatTokenizer,
    /// Messages to texts.
    pub template: ChatTemplate,
    /// The tokens that end a text.
    pub end_tokens: Vec<u32>,
}

impl Vlm {
    /// Opens a repository; the model computes in `dtype`.
    ///
    /// # Errors
    /// Where a file is missing (naming it) or damaged, where the model has no vision, and where there is no room for it.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config = read_model(&folder.join("config.json"))?;
        let in_folder = |fault: Error| match fault {
            Error::Spec(message) => Error::weights(folder, message),
            other => other,
        };
        config.check().map_err(in_folder)?;
        let processor: ProcessorConfig = read_config(&there(folder, "preprocessor_config.json")?)?;
        let generation: GenerationConfig = read_config(&there(folder, "generation_config.json")?)?;
        let end_tokens = generation.eos_token_id.ids().to_vec();
        if end_tokens.is_empty() {
            return Err(Error::weights(
                folder.join("generation_config.json"),
                "names no `eos_token_id`, so that no text would end by itself; fetch the file again",
            ));
        }
        let path = there(folder, "tokenizer.json")?;
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let tokenizer = ChatTokenizer::from_json(&bytes, &config).map_err(in_folder)?;
        let template = ChatTemplate::new(&read_template(folder)?).map_err(in_folder)?;
        let weights = Weights::open(first_there(folder, &WEIGHTS)?)?;
        has_room(&weights, dtype, free_memory(device))?;
        let builder = match layout::is_llava_resaved(weights.names().into_iter()) {
            true => weights.builder_in(layout::llava_resaved, dtype, device),
            false => weights.builder(dtype, device),
        };
        let processor = ImageProcessor::new(&processor, &config).map_err(in_folder)?;
        Ok(Self { model: LlavaOnevision::new(&config, builder)?, processor, tokenizer, template, end_tokens })
    }

    /// A prompt's text, up to the start of the model's answer.
    ///
    /// # Errors
    /// Where the chat template refuses the messages.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        self.template.render(messages, true)
    }

    /// A prompt with its images as the model takes it.
    ///
    /// # Errors
    /// Where the prompt has fewer or more placeholders `<image>` than there are images, or an image has no pixels.
    pub fn input(&self, prompt: &str, images: &[Image], layout: Layout) -> Result<Input> {
        self.input_of(prompt, &images.iter().collect::<Vec<_>>(), layout)
    }

    /// As [`Vlm::input`], of pictures that stand in several places.
    ///
    /// # Errors
    /// As [`Vlm::input`].
    pub fn input_of(&self, prompt: &str, images: &[&Image], layout: Layout) -> Result<Input> {
        let views = images.iter().enumerate().map(|(i, image)| {
            self.processor.views(image, layout).map_err(|fault| match fault {
                Error::Shape(message) => Error::Shape(format!("image {}: {message}", i + 1)),
                other => other,
            })
        });
        self.tokenizer.input(prompt, views.collect::<Result<_>>()?)
    }

    /// Greedy writing up to `max_new_tokens` tokens or the model's own end.
    pub fn greedy(&self, max_new_tokens: usize) -> Decoding<'_> {
        Decoding { max_new_tokens, end_tokens: &self.end_tokens, sampling: Sampling::Greedy, states: false }
    }
}

/// What identifies a repository: its config, its tokenizer, its template and its weights, all bytes of which are read.
///
/// # Errors
/// Where a file is missing.
pub fn repository_digest(folder: &Path) -> Result<Digest> {
    let mut parts = Vec::new();
    for name in ["config.json", "preprocessor_config.json", "generation_config.json", "tokenizer.json"] {
        let path = there(folder, name)?;
        parts.push(Digest::of(&std::fs::read(&path).map_err(Error::io("read", &path))?));
    }
    parts.push(Digest::of(read_template(folder)?.as_bytes()));
    parts.push(Weights::open(first_there(folder, &WEIGHTS)?)?.content_digest()?);
    Ok(Digest::of(parts.iter().map(Digest::hex).collect::<String>().as_bytes()))
}

/// The path of a file that the repository must have.
fn there(folder: &Path, name: &str) -> Result<PathBuf> {
    first_there(folder, &[name])
}

/// `config.json`, if it describes a model that sees.
fn read_model(path: &Path) -> Result<Config> {
    let value: serde_json::Value = read_config(path)?;
    let kind = value["model_type"].as_str().unwrap_or("without a model_type");
    if value.get("vision_config").is_none_or(serde_json::Value::is_null) {
        return Err(Error::weights(
            path,
            format!(
                "describes a model without vision ({kind}): it has no `vision_config`; use a repository such as \
                 llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
            ),
        ));
    }
    if kind != "llava_onevision" {
        return Err(Error::weights(
            path,
            format!(
                "describes a model of type {kind}, expected llava_onevision; use one of the llava-hf repositories"
            ),
        ));
    }
    read_config(path)
}

/// The chat template, in the first of the places where repositories keep it.
fn read_template(folder: &Path) -> Result<String> {
    let plain = folder.join("chat_template.jinja");
    if plain.is_file() {
        return std::fs::read_to_string(&plain).map_err(Error::io("read", &plain));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let value: serde_json::Value = read_config(&path)?;
        if let Some(template) = value["chat_template"].as_str() {
            return Ok(template.to_owned());
        }
    }
    Err(Error::weights(
        folder,
        "holds no chat template: expected chat_template.json or chat_template.jinja, or a `chat_template` in \
         tokenizer_config.json; fetch the repository again",
    ))
}
