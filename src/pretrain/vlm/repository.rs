//! The files around the desk vision-language model's weights, in the layout of `llava-hf/llava-onevision-qwen2-*-ov-hf`:
//! its configs, its chat template, and a tokenizer that knows the desk's words.

use serde_json::json;

use crate::error::{Error, Result};
use crate::models::clip::Activation;
use crate::models::llava_onevision::{
    Config, EndTokens, GenerationConfig, ProcessorConfig, TextConfig, TileSize, VisionConfig,
};
use crate::scenes::{SIDE, talk, words};

/// ChatML without a default system message; whitespace means nothing to the desk's tokenizer.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + ' ' }}\
    {% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image> ' }}{% endfor %}\
    {% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}\
    {{ ' <|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ ' <|im_start|> assistant ' }}{% endif %}";

/// Tokens that are commands.
const SPECIAL: [&str; 4] = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"];

/// The words of prompts and answers that neither captions nor descriptions hold.
const FRAME: [&str; 26] = [
    "system",
    "user",
    "assistant",
    "describe",
    "compare",
    "profile",
    "preferred",
    "dispreferred",
    "prefers",
    "A",
    "B",
    "Pair",
    "1:",
    "2:",
    "3:",
    "4:",
    "5:",
    "6:",
    "7:",
    "8:",
    "Preferred",
    "Dispreferred",
    "Image:",
    "Differences:",
    "User",
    "Profile:",
];

/// Every token, in the order of the ids.
fn vocabulary() -> Vec<&'static str> {
    let mut tokens: Vec<&'static str> = SPECIAL.to_vec();
    tokens.push("<unk>");
    for word in FRAME.into_iter().chain(words()).chain(talk::WORDS.into_iter().flatten()).chain([talk::PLAIN])
    {
        if !tokens.contains(&word) {
            tokens.push(word);
        }
    }
    tokens
}

/// The id of a token of [`vocabulary`].
fn id(token: &str) -> Result<u32> {
    let place = vocabulary().iter().position(|known| *known == token);
    place.map(|place| place as u32).ok_or_else(|| Error::Spec(format!("the desk's words have no {token:?}")))
}

/// The tokenizer's `tokenizer.json`: words between spaces.
pub fn tokenizer_json() -> String {
    let tokens = vocabulary();
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let special = |(id, token): (usize, &&str)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    serde_json::to_string_pretty(&file).expect("a JSON value has a text") + "\n"
}

/// The sizes of a desk vision-language model; what is not here is the same for all.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Pixels across and down one patch.
    pub patch: usize,
    /// Width of the image tower.
    pub vision_width: usize,
    /// Blocks of the image tower.
    pub vision_layers: usize,
    /// Width of the language model.
    pub text_width: usize,
    /// Width inside its blocks' gated maps.
    pub text_inner: usize,
    /// Blocks of the language model.
    pub text_layers: usize,
}

impl Sizes {
    /// The model's `config.json`.
    ///
    /// # Errors
    /// None for the vocabulary of this crate.
    pub fn model(&self) -> Result<Config> {
        Ok(Config {
            vision_config: VisionConfig {
                hidden_size: self.vision_width,
                intermediate_size: 3 * self.vision_width,
                num_hidden_layers: self.vision_layers,
                num_attention_heads: 4,
                image_size: SIDE,
                patch_size: self.patch,
                hidden_act: Activation::GeluPytorchTanh,
                layer_norm_eps: 1e-6,
            },
            text_config: TextConfig {
                vocab_size: vocabulary().len(),
                hidden_size: self.text_width,
                intermediate_size: self.text_inner,
                num_hidden_layers: self.text_layers,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                max_position_embeddings: 1024,
                tie_word_embeddings: true,
                ..TextConfig::default()
            },
            image_token_index: id("<image>")?,
            image_grid_pinpoints: vec![(SIDE, SIDE)],
            tie_word_embeddings: true,
            ..Config::default()
        })
    }
}

/// The model's `preprocessor_config.json`.
pub fn processor() -> ProcessorConfig {
    ProcessorConfig {
        size: TileSize { height: SIDE, width: SIDE },
        image_grid_pinpoints: Some(vec![(SIDE, SIDE)]),
        ..ProcessorConfig::default()
    }
}

/// The model's `generation_config.json`.
///
/// # Errors
/// None for the vocabulary of this crate.
pub fn generation() -> Result<GenerationConfig> {
    Ok(GenerationConfig { eos_token_id: EndTokens::One(id("<|im_end|>")?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::llava_onevision::ChatTokenizer;

    #[test]
    fn every_token_is_known_once_and_a_text_comes_back() {
        let tokens = vocabulary();
        let once: std::collections::BTreeSet<_> = tokens.iter().collect();
        assert_eq!(once.len(), tokens.len());
        let sizes = Sizes {
            patch: 16,
            vision_width: 32,
            vision_layers: 1,
            text_width: 32,
            text_inner: 64,
            text_layers: 1,
        };
        let config = sizes.model().unwrap();
        config.check().unwrap();
        let tokenizer = ChatTokenizer::from_json(tokenizer_json().as_bytes(), &config).unwrap();
        let text = "Pair 1: Preferred Image: bright warm Differences: rough User Profile: faithful";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!((ids.len(), tokenizer.decode(&ids, false).unwrap().as_str()), (11, text));
        let unknown = tokenizer.id("<unk>").unwrap();
        let caption =
            "a small red square left of an orange circle with a blue star above them on a gray background";
        assert!(!tokenizer.encode(caption).unwrap().contains(&unknown));
        assert_eq!(tokenizer.encode("<image>\n<image> A<|im_end|>").unwrap().len(), 4);
        assert_eq!(tokenizer.encode("spaghetti").unwrap(), [unknown]);
    }
}
