//! Where the tensors of one checkpoint layout lie in another.
//!
//! Models ask for tensors by the names of the diffusers and Hugging Face layouts; a function from such a name to a
//! [`Place`] is all that reading another layout takes.

/// A tensor's place in a file of another layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name there.
    pub name: String,
    /// Which of how many equal parts of that tensor's first axis it is; absent: all of it.
    pub part: Option<(usize, usize)>,
}

/// Stability's own files (`stage_c*.safetensors`, `stage_b*.safetensors`): torch's attention, with queries, keys and
/// values in one projection.
///
/// # Source
/// `Stability-AI/StableCascade`, `modules/common.py`: `Attention2D` holds an `nn.MultiheadAttention`.
pub fn stability(name: &str) -> Place {
    let whole = |name: String| Place { name, part: None };
    let Some((block, rest)) = name.split_once(".attention.to_") else { return whole(name.to_owned()) };
    match rest.split_once('.') {
        Some((map @ ("q" | "k" | "v"), kind)) => Place {
            name: format!("{block}.attention.attn.in_proj_{kind}"),
            part: Some((["q", "k", "v"].iter().position(|other| *other == map).unwrap_or_default(), 3)),
        },
        Some(("out", kind)) => {
            whole(format!("{block}.attention.attn.out_proj.{}", kind.trim_start_matches("0.")))
        }
        _ => whole(name.to_owned()),
    }
}

/// Whether a file with these names is in [`stability`]'s layout.
pub fn is_stability<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name.ends_with(".attention.attn.in_proj_weight"))
}

/// LLaVA-OneVision as transformers from 4.52 on saves it: the parts stand below `model`, the logits beside it.
pub fn llava_resaved(name: &str) -> Place {
    let name = match name.strip_prefix("language_model.") {
        Some("lm_head.weight") => "lm_head.weight".to_owned(),
        Some(rest) => format!("model.language_model.{}", rest.trim_start_matches("model.")),
        None => format!("model.{name}"),
    };
    Place { name, part: None }
}

/// Whether a file with these names is in the layout of [`llava_resaved`].
pub fn is_llava_resaved<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name.starts_with("model.language_model."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_found_where_torch_keeps_it() {
        let part = |name: &str, part| Place { name: name.into(), part };
        for (ours, place) in [
            ("up.1.2.attention.to_q.weight", part("up.1.2.attention.attn.in_proj_weight", Some((0, 3)))),
            ("up.1.2.attention.to_v.bias", part("up.1.2.attention.attn.in_proj_bias", Some((2, 3)))),
            ("up.1.2.attention.to_out.0.bias", part("up.1.2.attention.attn.out_proj.bias", None)),
            ("up.1.2.kv_mapper.1.bias", part("up.1.2.kv_mapper.1.bias", None)),
        ] {
            assert_eq!(stability(ours), place);
        }
        assert!(is_stability(["a", "b.attention.attn.in_proj_weight"].into_iter()));
        assert!(!is_stability(["b.attention.to_q.weight"].into_iter()));
    }

    #[test]
    fn the_language_model_is_found_below_the_model() {
        for (ours, place) in [
            ("language_model.model.norm.weight", "model.language_model.norm.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("image_newline", "model.image_newline"),
        ] {
            assert_eq!(llava_resaved(ours), Place { name: place.into(), part: None });
        }
        assert!(is_llava_resaved(["model.language_model.norm.weight"].into_iter()));
        assert!(!is_llava_resaved(["language_model.model.norm.weight"].into_iter()));
    }
}
