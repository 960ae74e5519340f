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

/// Stability's `stage_b*.safetensors`: as [`stability`], and the pooled text's map has a shorter name.
///
/// # Source
/// `Stability-AI/StableCascade`, `modules/stage_b.py`.
pub fn stability_stage_b(name: &str) -> Place {
    match name.strip_prefix("clip_txt_pooled_mapper.") {
        Some(kind) => Place { name: format!("clip_mapper.{kind}"), part: None },
        None => stability(name),
    }
}

/// IP-Adapter's files: the maps of each attention block under its number in running order, where the adapter names the
/// block itself.
///
/// # Source
/// `tencent-ailab/IP-Adapter`, `tutorial_train.py`: `ip_adapter.<number>.to_k_ip.weight`.
pub fn ip_adapter(blocks: &[(String, usize)]) -> impl Fn(&str) -> Place + Send + Sync + 'static {
    let names: Vec<String> = blocks.iter().map(|(name, _)| format!("{name}.")).collect();
    move |name| {
        let numbered = names.iter().enumerate().find_map(|(number, block)| {
            name.strip_prefix(block).map(|rest| format!("ip_adapter.{number}.{rest}"))
        });
        Place { name: numbered.unwrap_or_else(|| name.to_owned()), part: None }
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
            assert_eq!(stability_stage_b(ours), place);
        }
        assert_eq!(stability_stage_b("clip_txt_pooled_mapper.bias"), part("clip_mapper.bias", None));
        let blocks = [("down_blocks.0.2".to_owned(), 8), ("down_blocks.0.20".to_owned(), 8)];
        for (ours, theirs) in [
            ("down_blocks.0.2.to_k_ip.weight", "ip_adapter.0.to_k_ip.weight"),
            ("down_blocks.0.20.to_v_ip.weight", "ip_adapter.1.to_v_ip.weight"),
            ("user_projector.weight", "user_projector.weight"),
        ] {
            assert_eq!(ip_adapter(&blocks)(ours), part(theirs, None));
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
