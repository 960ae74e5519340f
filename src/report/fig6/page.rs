//! The grid as one HTML document: images inside, no script, readable on a phone.

use base64::Engine as _;

use super::super::people::kind_label;
use super::{Grid, Line, Shown};

/// Sizes and colours; every mark is also a sign or a line.
const STYLE: &str = "\
:root{color-scheme:light}
body{font:16px/1.45 system-ui,'DejaVu Sans',Verdana,sans-serif;color:#262626;background:#fff;margin:0 auto;padding:1rem;max-width:70rem}
h1{font-size:1.3rem}
h2{font-size:1.05rem;margin:0 0 .3rem}
section{border-top:1px solid #808080;padding:.8rem 0}
p{margin:.2rem 0;overflow-wrap:anywhere}
.images{display:flex;flex-wrap:wrap;gap:.8rem;margin-top:.6rem}
figure{margin:0;width:9rem}
img,.none{display:block;width:9rem;height:9rem;box-sizing:border-box;image-rendering:pixelated}
.none{color:#6b6b6b;border:1px dashed #808080;padding:.4rem}
.neglects img{outline:4px solid #d55e00}
.neglected{color:#a34700;font-weight:bold}
figcaption{font-size:.85rem;margin-top:.4rem;overflow-wrap:anywhere}
mark{background:#b3e2d5;color:#003d2c;font-weight:bold;text-decoration:underline #009e73 2px;padding:0 .15rem}
.no{color:#6b6b6b}
";

/// Text as it may stand between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The whole document.
pub(super) fn html(grid: &Grid, title: &str, caption: &str) -> String {
    let (title, caption) = (escape(title), escape(caption));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}: images</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}: images</h1>\n<p>{caption}</p>\n\
         <p><mark>✓ word</mark> the measured image agrees with it · <span class=\"no\">word</span> it does not · \
         <span class=\"neglected\">✗</span> caption neglected</p>\n"
    );
    for line in &grid.lines {
        section(&mut page, grid, line);
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn section(page: &mut String, grid: &Grid, line: &Line) {
    let profile = if line.profile.is_empty() { "(nothing was written)" } else { line.profile };
    *page += &format!(
        "<section>\n<h2>User {} ({})</h2>\n<p>Profile: {}</p>\n<p>Prompt: “{}”</p>\n<div class=\"images\">\n",
        line.user,
        kind_label(Some(line.kind)),
        escape(profile),
        escape(line.prompt)
    );
    for (method, shown) in grid.methods.iter().zip(&line.images) {
        let label = escape(&method.label);
        match shown {
            Some(shown) => image(page, &label, line, shown),
            None => {
                *page += &format!(
                    "<figure><div class=\"none\">no image for this user</div><figcaption>{label}</figcaption></figure>\n"
                );
            }
        }
    }
    page.push_str("</div>\n</section>\n");
}

/// One image; `label` is escaped already.
fn image(page: &mut String, label: &str, line: &Line, shown: &Shown) {
    let data = base64::engine::general_purpose::STANDARD.encode(&shown.png);
    let words: Vec<String> = match &shown.agrees {
        None => vec!["<span class=\"no\">not measured</span>".into()],
        Some(agrees) => line.words.iter().zip(agrees).map(|(word, agrees)| said(word, *agrees)).collect(),
    };
    let (class, neglected) = match shown.neglects {
        true => (" class=\"neglects\"", "<br><span class=\"neglected\">✗ caption neglected</span>"),
        false => ("", ""),
    };
    *page += &format!(
        "<figure{class}><img alt=\"{label}, for “{}”\" src=\"data:image/png;base64,{data}\">\
         <figcaption>{label}<br>{}{neglected}</figcaption></figure>\n",
        escape(line.prompt),
        words.join(" ")
    );
}

fn said(word: &str, agrees: bool) -> String {
    match agrees {
        true => format!("<mark>✓ {}</mark>", escape(word)),
        false => format!("<span class=\"no\">{}</span>", escape(word)),
    }
}
