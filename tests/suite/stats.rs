//! Statistics held to scipy and statsmodels (tests/reference/golden_stats.py), and to what an interval promises.

use std::path::Path;

use ppd::rng::Stream;
use ppd::stats::bootstrap::{distribution_of, jackknife};
use ppd::stats::contrast::{benjamini_hochberg, bonferroni, holm};
use ppd::stats::crossed::{CONDITIONAL, Ratio};
use ppd::stats::proportion::{Alternative, binomial_test, clopper_pearson, wilson, wilson_corrected};
use ppd::stats::sample::{mean, median, quantile};
use ppd::stats::{
    Clusters, Crossed, Method, Replicates, correlation, distribution, mean_interval, paired, rate_interval,
    ratio_interval,
};
use ppd::units::Seed;
use serde_json::Value;

use crate::packed;

#[path = "../soak/coverage.rs"]
mod coverage;

/// Sums are taken in another order than NumPy's pairwise one: a few last bits.
const LAST_BITS: f64 = 1e-13;
/// The incomplete beta function and its inverse, another algorithm than scipy's.
const SPECIAL: f64 = 1e-10;

struct Fixture {
    json: Value,
    samples: Vec<u8>,
}

impl Fixture {
    fn read() -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stats");
        let json = std::fs::read(format!("{folder}/stats.json")).expect("the fixture is tracked");
        let samples = packed::bytes(&Path::new(folder).join("samples.safetensors"));
        Self { json: serde_json::from_slice(&json).expect("JSON"), samples }
    }

    fn tensor<T, const BYTES: usize>(&self, name: &str, of: fn([u8; BYTES]) -> T) -> Vec<T> {
        let tensors = safetensors::SafeTensors::deserialize(&self.samples).expect("safetensors");
        let data = tensors.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}")).data().to_vec();
        data.chunks_exact(BYTES).map(|bytes| of(bytes.try_into().expect("a whole number"))).collect()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.tensor(name, f64::from_le_bytes)
    }

    fn indices(&self, name: &str) -> Vec<u32> {
        self.tensor(name, |[index]| index.into())
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, got {value}"))
}

#[track_caller]
fn close(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "got {got}, expected {expected}");
}

#[track_caller]
fn close_pair((low, high): (f64, f64), expected: &Value, tolerance: f64) {
    let expected = numbers(expected);
    close(low, expected[0], tolerance);
    close(high, expected[1], tolerance);
}

#[test]
fn bootstrap_intervals_equal_scipy_on_stored_resamples() {
    let fixture = Fixture::read();
    let mut compared = 0;
    for name in ["normal40", "binary60", "skew25", "const_ish"] {
        let x = fixture.values(&format!("{name}.x_f64"));
        let indices = fixture.indices(&format!("{name}.resample_idx"));
        for (statistic, of) in [("mean", mean as fn(&[f64]) -> Option<f64>), ("median", median)] {
            let Some(expected) = fixture.json[name].get(statistic) else { continue };
            let of = |values: &[f64]| of(values).expect("not empty");
            let drawn = distribution_of(&indices, x.len(), |drawn| {
                of(&drawn.iter().map(|&i| x[i as usize]).collect::<Vec<_>>())
            });
            let left_out = jackknife(x.len(), |i| of(&[&x[..i], &x[i + 1..]].concat()));
            let replicates = Replicates::new(of(&x), drawn).expect("finite");
            assert_eq!(replicates.sorted().len(), 2000);
            close(replicates.point(), number(&expected["point"]), LAST_BITS);
            let error = replicates.standard_error().expect("2000 resamples");
            close(error, number(&expected["std_error(ddof1 of dist)"]), LAST_BITS);
            let correction = replicates.bca_correction(&left_out);
            match &expected["bca_accel"] {
                Value::Null => assert_eq!(correction, None, "{name} {statistic}"),
                acceleration => {
                    let correction = correction.expect("scipy has one");
                    close(correction.bias, number(&expected["bca_z0"]), LAST_BITS);
                    close(correction.acceleration, number(acceleration), LAST_BITS);
                }
            }
            for level in [0.95, 0.9] {
                close_pair(replicates.percentile(level), &expected[format!("percentile_{level}")], LAST_BITS);
                close_pair(replicates.basic(level), &expected[format!("basic_{level}")], LAST_BITS);
                let bca = &expected[format!("BCa_{level}")];
                match replicates.bca(level, &left_out) {
                    Some(ends) => close_pair(ends, bca, LAST_BITS),
                    None => {
                        assert!(bca[0].is_null() && bca[1].is_null(), "{name} {statistic}: scipy has {bca}")
                    }
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 14);
}

#[test]
fn seeded_resamples_agree_with_scipys_own() {
    let fixture = Fixture::read();
    for name in ["normal40", "skew25"] {
        let x = fixture.values(&format!("{name}.x_f64"));
        let clusters = Clusters::of_equal_size(&x).expect("finite");
        let replicates = clusters.replicates(20_000, Seed::new(3)).expect("resamples");
        let expected = &fixture.json[name]["mean"];
        // Two bootstraps of 20,000 differ at the 2.5 % quantile by about 0.02 standard errors each; allow 0.1.
        let slack = 0.1 * number(&expected["std_error(ddof1 of dist)"]);
        for (ends, key) in [
            (replicates.percentile(0.95), "scipy_own_rng_percentile_0.95_n20000"),
            (
                replicates.bca(0.95, &clusters.jackknife()).expect("it varies"),
                "scipy_own_rng_BCa_0.95_n20000",
            ),
        ] {
            let expected = numbers(&expected[key]);
            assert!((ends.0 - expected[0]).abs() < slack, "{name} {key} {ends:?} {expected:?}");
            assert!((ends.1 - expected[1]).abs() < slack, "{name} {key} {ends:?} {expected:?}");
        }
    }
}

#[test]
fn paired_bootstrap_and_tests_equal_scipy() {
    let fixture = Fixture::read();
    let (a, b) = (fixture.values("paired.a_f64"), fixture.values("paired.b_f64"));
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
    let clusters = Clusters::of_equal_size(&differences).expect("finite");
    let indices = fixture.indices("paired.resample_idx");
    let drawn = distribution_of(&indices, a.len(), |drawn| clusters.mean_of(drawn));
    let replicates = Replicates::new(clusters.mean(), drawn).expect("finite");
    let expected = &fixture.json["paired_mean_difference"];
    close(replicates.point(), number(&expected["point"]), LAST_BITS);
    close_pair(replicates.percentile(0.95), &expected["percentile_0.95"], LAST_BITS);
    close_pair(
        replicates.bca(0.95, &clusters.jackknife()).expect("it varies"),
        &expected["BCa_0.95"],
        LAST_BITS,
    );
    let p = number(&expected["p_two_sided_bootstrap = 2*min(mean(d<=0), mean(d>=0))"]);
    close(replicates.p_two_sided(0.0), p, LAST_BITS);
    let t = paired::t_test(&differences).expect("it varies");
    close(t.statistic, number(&expected["ttest_rel"]["t"]), LAST_BITS);
    close(t.p, number(&expected["ttest_rel"]["p"]), SPECIAL);
    let ranks = paired::wilcoxon(&differences).expect("it varies");
    close(ranks.statistic, number(&expected["wilcoxon"]["W"]), 0.0);
    close(ranks.p, number(&expected["wilcoxon"]["p"]), LAST_BITS);
}

#[test]
fn proportions_equal_scipy() {
    let fixture = Fixture::read();
    for expected in fixture.json["binomial"].as_array().expect("a list") {
        let (k, n) = (expected["k"].as_u64().expect("k"), expected["n"].as_u64().expect("n"));
        let null = expected.get("p0").map_or(0.5, number);
        let p = |alternative| binomial_test(k, n, null, alternative).expect("valid");
        // Relative: a p-value of 1e-7 must be right as 1e-7.
        let same =
            |got: f64, expected: f64| assert!((got / expected - 1.0).abs() < 1e-11, "{got} {expected}");
        same(p(Alternative::TwoSided), number(&expected["p_two_sided"]));
        if expected.get("p0").is_some() {
            continue;
        }
        same(p(Alternative::Greater), number(&expected["p_greater"]));
        same(p(Alternative::Less), number(&expected["p_less"]));
        let ends = |estimate: ppd::stats::Estimate| (estimate.low, estimate.high);
        close_pair(ends(wilson(k as f64, n, 0.95).expect("valid")), &expected["wilson_0.95"], LAST_BITS);
        close_pair(ends(wilson(k as f64, n, 0.99).expect("valid")), &expected["wilson_0.99"], LAST_BITS);
        close_pair(ends(wilson_corrected(k, n, 0.95).expect("valid")), &expected["wilsoncc_0.95"], LAST_BITS);
        close_pair(ends(clopper_pearson(k, n, 0.95).expect("valid")), &expected["exact_0.95"], SPECIAL);
    }
}

#[test]
fn corrections_for_many_claims_equal_statsmodels() {
    let fixture = Fixture::read();
    for case in fixture.json["holm"].as_array().expect("a list") {
        let p = numbers(&case["p"]);
        let same = |got: Vec<f64>, key: &str| {
            got.iter().zip(numbers(&case[key])).for_each(|(got, expected)| close(*got, expected, LAST_BITS));
        };
        same(holm(&p), "adjusted");
        same(bonferroni(&p), "bonferroni");
        same(benjamini_hochberg(&p), "bh_fdr");
        let rejected: Vec<bool> = holm(&p).iter().map(|&p| p <= 0.05).collect();
        assert_eq!(serde_json::json!(rejected), case["reject"]);
    }
}

#[test]
fn quantiles_normals_and_correlations_equal_scipy() {
    let fixture = Fixture::read();
    let expected = &fixture.json["quantiles_linear"];
    let mut x = numbers(&expected["x"]);
    x.sort_by(f64::total_cmp);
    for (q, v) in numbers(&expected["q"]).into_iter().zip(numbers(&expected["v"])) {
        close(quantile(&x, q).expect("within"), v, LAST_BITS);
    }
    for (q, expected) in fixture.json["norm_ppf"].as_object().expect("an object") {
        close(distribution::normal_quantile(q.parse().expect("a number")), number(expected), LAST_BITS);
    }
    for (z, expected) in fixture.json["norm_cdf"].as_object().expect("an object") {
        let (got, expected) = (distribution::normal_cdf(z.parse().expect("a number")), number(expected));
        assert!((got / expected - 1.0).abs() < 1e-12, "{z}: {got} {expected}");
    }
    let expected = &fixture.json["correlation"];
    let (x, y) = (numbers(&expected["x"]), numbers(&expected["y"]));
    for (of, key) in [
        (correlation::pearson as fn(&[f64], &[f64]) -> _, "pearson"),
        (correlation::spearman, "spearman"),
        (correlation::kendall, "kendall"),
    ] {
        let got: correlation::Correlation = of(&x, &y).expect("valid").expect("both vary");
        let expected = numbers(&expected[key]);
        close(got.coefficient, expected[0], LAST_BITS);
        let p = got.p.expect("thirty points");
        assert!((p / expected[1] - 1.0).abs() < SPECIAL, "{key}: {p} {}", expected[1]);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let study = coverage::Design { seeds: 6, prompts: 130, ..coverage::Design::BALANCED }.draw(1).values;
    let labels: Vec<u64> = (0..study.values().len() as u64).map(|row| row % 97).collect();
    let clusters = Clusters::new(study.values(), &labels).expect("finite");
    let other = study.combine(&study, |a, _| a * a + 2.0).expect("one shape");
    let all = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let crossed = mean_interval(&study, 0.95, 1000, Seed::new(5)).expect("valid");
            let clustered = clusters.inference(1000, Seed::new(5)).expect("valid").estimate(0.95);
            let ratio = ratio_interval(&study, &other, 0.95, 1000, Seed::new(5)).expect("valid");
            serde_json::to_string(&(crossed, clustered, ratio)).expect("plain data")
        })
    };
    let one = all(1);
    assert_eq!(one, all(3));
    assert_eq!(one, all(8));
    let reseeded = mean_interval(&study, 0.95, 1000, Seed::new(6)).expect("valid");
    assert_ne!(reseeded, mean_interval(&study, 0.95, 1000, Seed::new(5)).expect("valid"));
}

#[test]
fn intervals_and_p_values_agree() {
    let crossed = coverage::Design::BALANCED.draw(3).values;
    let few = coverage::Design { seeds: 2, ..coverage::Design::BALANCED }.draw(4).values;
    for values in [crossed, few] {
        let inference = values.inference(2000, Seed::new(1)).expect("valid");
        for level in [0.8, 0.95, 0.99] {
            let estimate = inference.estimate(level);
            let tail = (1.0 - level) / 2.0;
            assert!(estimate.low < estimate.value && estimate.value < estimate.high);
            let step = 1e-6 * estimate.half_width();
            assert!(inference.p_greater(estimate.low - step) < tail + 1e-9);
            assert!(inference.p_greater(estimate.low + step) > tail - 1e-9);
            assert!(inference.p_less(estimate.high + step) < tail + 1e-9);
            assert!(inference.p_less(estimate.high - step) > tail - 1e-9);
        }
        // Far away, no smaller than the resamples can show; on the other side, near one.
        assert_eq!(inference.p_greater(-1e9), 1.0 / 2001.0);
        assert!(inference.p_greater(1e9) > 0.999);
    }
}

#[test]
fn degenerate_samples_say_what_was_done() {
    let wins = Crossed::new(6, 40, vec![1.0; 240]).expect("finite");
    let rate = rate_interval(&wins, 0.95, 500, Seed::new(0)).expect("valid");
    assert_eq!(rate.method, Method::Wilson);
    close(rate.low, wilson(40.0, 40, 0.95).expect("valid").low, LAST_BITS);
    assert_eq!(rate.high, 1.0);
    assert!(rate.note.expect("a fallback is named").contains("Wilson"));
    let constant = Crossed::new(6, 40, vec![0.0; 240]).expect("finite");
    let none = mean_interval(&constant, 0.95, 500, Seed::new(0)).expect("valid");
    assert_eq!((none.low, none.high, none.method), (0.0, 0.0, Method::None));
    assert!(none.note.is_some());
    let inference = wins.inference(500, Seed::new(0)).expect("valid");
    assert_eq!((inference.p_greater(0.5), inference.p_less(0.5)), (0.5f64.powi(40), 1.0));
    let single = Crossed::new(5, 1, vec![1.0, 2.0, 3.0, 4.0, 5.0]).expect("finite");
    let open = mean_interval(&single, 0.95, 500, Seed::new(0)).expect("valid");
    assert_eq!((open.low, open.high), (f64::NEG_INFINITY, f64::INFINITY));
    let few = coverage::Design { seeds: 4, ..coverage::Design::BALANCED }.draw(9).values;
    let conditional = mean_interval(&few, 0.95, 500, Seed::new(0)).expect("valid");
    assert_eq!(
        (conditional.method, conditional.note.as_deref()),
        (Method::ClusterBootstrap, Some(CONDITIONAL))
    );
    let clusters = Clusters::new(&[1.0; 9], &[0, 0, 0, 1, 1, 1, 2, 2, 2]).expect("finite");
    assert_eq!(
        clusters.rate_inference(10, Seed::new(0)).expect("valid").estimate(0.95).method,
        Method::Wilson
    );
}

#[test]
fn bad_input_is_refused() {
    assert!(Crossed::new(2, 2, vec![0.0; 3]).is_err());
    assert!(Crossed::new(0, 2, vec![]).is_err());
    let message = Crossed::new(2, 2, vec![0.0, 1.0, f64::NAN, 2.0]).expect_err("NaN").to_string();
    assert!(message.contains("prompt 1, training seed 0"), "{message}");
    let (two, three) = (Crossed::new(2, 2, vec![0.0; 4]), Crossed::new(3, 2, vec![0.0; 6]));
    let (two, three) = (two.expect("finite"), three.expect("finite"));
    assert!(two.minus(&three).is_err());
    let varied = coverage::Design::BALANCED.draw(0).values;
    assert!(mean_interval(&varied, 1.0, 100, Seed::new(0)).is_err());
    assert!(mean_interval(&varied, 0.95, 0, Seed::new(0)).is_err());
    assert!(rate_interval(&varied, 0.95, 100, Seed::new(0)).is_err());
    assert!(Clusters::new(&[1.0], &[]).is_err());
    assert!(Clusters::new(&[], &[]).is_err());
}

#[test]
fn gathering_averages_noise_seeds_and_names_incomplete_prompts() {
    let rows = [(7, 1, 1.0), (7, 1, 3.0), (9, 1, 5.0), (7, 2, 4.0), (9, 4, 1.0), (7, 4, 0.0)];
    let gathered = Crossed::gather(rows).expect("two prompts are complete");
    assert_eq!(gathered.seeds, [7, 9]);
    assert_eq!(gathered.prompts, [1, 4]);
    assert_eq!(gathered.incomplete, [2]);
    assert_eq!(gathered.values.values(), [2.0, 5.0, 0.0, 1.0]);
    assert_eq!(gathered.values.seed_means(), [1.0, 3.0]);
    assert_eq!(gathered.values.prompt_means(), [3.5, 0.5]);
    let wins = gathered.values.wins_over(&Crossed::new(2, 2, vec![2.0, 1.0, 3.0, 0.0]).expect("finite"));
    assert_eq!(wins.expect("one shape").values(), [0.5, 1.0, 0.0, 1.0]);
    assert!(Crossed::gather([(1, 1, 0.0), (2, 2, 0.0)]).is_err());
}

#[test]
fn ratios_follow_their_parts() {
    let gain = coverage::Design { mean: 4.0, ..coverage::Design::BALANCED }.draw(11).values;
    // A fixed fraction of every cell has that ratio exactly, and an interval without width.
    let kept = gain.combine(&gain, |a, _| 0.8 * a).expect("one shape");
    let exact = ratio_interval(&kept, &gain, 0.95, 1000, Seed::new(2)).expect("valid");
    close(exact.value, 0.8, 1e-12);
    assert!(exact.half_width() < 1e-6 && exact.covers(exact.value), "{exact:?}");
    // By a constant, the ratio is a mean: Fieller's interval is the mean's.
    let ones = gain.combine(&gain, |_, _| 2.0).expect("one shape");
    let halved = ratio_interval(&gain, &ones, 0.95, 1000, Seed::new(2)).expect("valid");
    let mean = mean_interval(&gain, 0.95, 1000, Seed::new(2)).expect("valid");
    close(halved.low, mean.low / 2.0, 1e-9);
    close(halved.high, mean.high / 2.0, 1e-9);
    // Turned about, a ratio's ends swap signs.
    let minus = ones.combine(&ones, |a, _| -a).expect("one shape");
    let turned = ratio_interval(&gain, &minus, 0.95, 1000, Seed::new(2)).expect("valid");
    close(turned.low, -halved.high, 1e-9);
    close(turned.high, -halved.low, 1e-9);
    let ratio = Ratio::new(&gain, &ones, 1000, Seed::new(2)).expect("valid");
    assert!(ratio.p_greater(halved.low - 1e-6).expect("valid") < 0.025 + 1e-9);
    assert!(ratio.p_greater(halved.low + 1e-6).expect("valid") > 0.025 - 1e-9);
    // A denominator that may be zero excludes nothing.
    let zero = coverage::Design { mean: 0.0, ..coverage::Design::BALANCED }.draw(12).values;
    let open = ratio_interval(&gain, &zero, 0.95, 1000, Seed::new(2)).expect("valid");
    assert_eq!((open.low, open.high), (f64::NEG_INFINITY, f64::INFINITY));
    assert!(open.note.expect("it says why").contains("denominator"));
}

#[test]
fn intervals_cover_in_a_short_simulation() {
    // 600 studies leave a standard error of 0.9 points; the soak target holds 10,000 of more designs to one point.
    for (name, design) in coverage::designs() {
        if design.seeds <= 5 && design.prompts <= 100 {
            let covered = design.coverage(600, 299);
            assert!((covered - 0.95).abs() < 0.03, "{name}: {covered}");
        }
    }
    for effect in [Stream::normal as fn(&mut Stream) -> f64, coverage::exponential] {
        let covered = coverage::cluster_coverage(100, effect, 600, 299);
        assert!((covered - 0.95).abs() < 0.03, "{covered}");
    }
}
