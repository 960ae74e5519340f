//! File names with `*`, which stands for any characters, slashes too.

/// Whether a name is one that `pattern` stands for.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Whether it stands for more than itself.
pub(super) fn is_open(pattern: &str) -> bool {
    pattern.contains('*')
}

/// The deepest folder that holds all of the files; empty where that is the root.
pub(super) fn common_folder<'a>(mut names: impl Iterator<Item = &'a str>) -> &'a str {
    let folder = |name: &'a str| name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut common = names.next().map_or("", folder);
    for name in names {
        while !common.is_empty() && !name.strip_prefix(common).is_some_and(|rest| rest.starts_with('/')) {
            common = folder(common);
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, expected) in [
            ("a.json", "a.json", true),
            ("a.json", "b/a.json", false),
            ("model-*.safetensors", "model-00001-of-00004.safetensors", true),
            ("model-*.safetensors", "model.safetensors", false),
            ("data/*-*.parquet", "data/train-0.parquet", true),
            ("data/*-*.parquet", "data/train.parquet", false),
            ("*", "anything/at all", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn files_share_their_deepest_folder() {
        for (names, expected) in [
            (&["prior/config.json", "prior/model.safetensors"][..], "prior"),
            (&["a/b/c", "a/b/d/e", "a/b/x"], "a/b"),
            (&["ab/c", "a/c"], ""),
            (&["a/c", "ab/c"], ""),
            (&["a/b", "c"], ""),
        ] {
            assert_eq!(common_folder(names.iter().copied()), expected, "{names:?}");
        }
    }
}
