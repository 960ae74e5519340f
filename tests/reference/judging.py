"""Profile likelihoods of stats/judging by scipy: what its unit tests hold `spread` and `bias_and_noise` to. Prints the constants."""
import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import betaln
from scipy.stats import chi2, norm

FAR = chi2.ppf(0.95, 1)


def critical(distance):
    """Of a parameter bounded at 0, so many standard errors above it (stats/likelihood.rs)."""
    if distance >= norm.ppf(0.975):
        return FAR
    d = max(distance, 1e-9)
    return brentq(lambda c: norm.cdf(-np.sqrt(c)) + norm.cdf(-(c + d * d) / (2 * d)) - 0.05, 2.70, 3.8415)


def peak(curve, low, high):
    found = minimize_scalar(lambda x: -curve(x), bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return -found.fun, found.x


# Spread: (wins, pairs) of users.
k, n = np.array([(3, 4), (0, 4), (4, 4), (2, 5), (5, 5), (1, 3), (0, 2), (4, 6), (6, 6), (2, 2), (1, 1), (3, 3)], float).T


def beta_binomial(mean, rho):
    a, b = mean * (1 / rho - 1), (1 - mean) * (1 / rho - 1)
    return (betaln(k + a, n - k + b) - betaln(a, b)).sum()


print("LOG_LIKELIHOODS", [(m, r, float(beta_binomial(m, r))) for m, r in [(0.6, 0.3), (0.2, 0.05), (0.9, 0.8)]])
by_rho = lambda rho: peak(lambda mean: beta_binomial(mean, rho), 1e-9, 1 - 1e-9)
by_mean = lambda mean: peak(lambda rho: beta_binomial(mean, rho), 1e-6, 1 - 1e-6)
highest, rho = peak(lambda r: by_rho(r)[0], 1e-6, 1 - 1e-6)
mean = by_rho(rho)[1]
print("MAXIMUM", [mean, rho, highest])
excess = lambda m: 2 * (highest - by_mean(m)[0]) - FAR
print("MEAN", [brentq(excess, 0.01, mean, xtol=1e-12), brentq(excess, mean, 0.99, xtol=1e-12)])


def near(r, step=1e-3):
    curvature = -(by_rho(r)[0] - 2 * by_rho(r + step)[0] + by_rho(r + 2 * step)[0]) / step**2
    return 2 * (highest - by_rho(r)[0]) - critical(r * np.sqrt(curvature))


far = lambda r: 2 * (highest - by_rho(r)[0]) - FAR
print("RHO", [brentq(near, 1e-4, rho, xtol=1e-10), brentq(far, rho, 0.9999, xtol=1e-12)])

# Bias and noise: 200 answers.
i = np.arange(200)
d = 3 * np.sin(1.3 * i)
sigmoid = lambda x: 1 / (1 + np.exp(-x))
probability = lambda b, n: (1 - n) * sigmoid(d + b) + n / 2
first = (0.618 * i) % 1 < probability(0.6, 0.2)


def oracle(b, n):
    p = probability(b, n)
    return np.log(np.where(first, p, 1 - p)).sum()


by_bias = lambda b: peak(lambda n: oracle(b, n), 0, 1)
by_noise = lambda n: peak(lambda b: oracle(b, n), -6, 6)
highest, b = peak(lambda b: by_bias(b)[0], -6, 6)
noise = by_bias(b)[1]


def distance(b, n):
    q, p = sigmoid(d + b), probability(b, n)
    v, slope_b, slope_n = p * (1 - p), (1 - n) * q * (1 - q), 0.5 - q
    left = (slope_n**2 / v).sum() - (slope_n * slope_b / v).sum() ** 2 / (slope_b**2 / v).sum()
    return n * np.sqrt(left)


def excess(n):
    height, b = by_noise(n)
    return 2 * (highest - height) - critical(distance(b, n))


of_bias = lambda b: 2 * (highest - by_bias(b)[0]) - FAR
ends = [brentq(of_bias, -5, b), brentq(of_bias, b, 5), brentq(excess, 1e-9, noise), brentq(excess, noise, 0.99)]
print("SCIPY", [float(x) for x in [b, noise, highest, *ends]])
