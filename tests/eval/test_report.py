"""The report page: its numbers match the results, and a browser shows all of it at any width."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html import unescape

import pytest
import torch
from fake_engines import record

from tfanet.checkpoint import load_model, save_model
from tfanet.errors import UserError
from tfanet.weights import bundled
from tfanet_engines.sidecar import model_sha256
from tfanet_eval.cli.evaluate import main
from tfanet_eval.jobs import EvaluationJob, run_job
from tfanet_eval.report import charts
from tfanet_eval.report.entries import entries_of
from tfanet_eval.report.page import write_report
from tfanet_eval.results import read_results

pytestmark = pytest.mark.integration

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HARNESS = """<iframe src="report.html" style="width: {width}px; height: 3000px; border: 0"></iframe>
<pre id="measured"></pre><script>addEventListener("load", () => {{
const page = document.querySelector("iframe").contentDocument, root = page.documentElement
const visible = element => {{
  const box = element.getBoundingClientRect(); return box.width > 40 && box.height > 40 }}
document.querySelector("#measured").textContent = JSON.stringify({{
  page: root.scrollWidth, window: root.clientWidth,
  images: [...page.images].filter(image => visible(image) && image.naturalWidth > 0).length,
  charts: [...page.querySelectorAll("figure svg")].filter(visible).length,
  smallest_font: Math.min(...[...page.querySelectorAll("p, td, th, span, figcaption")].map(
    element => parseFloat(getComputedStyle(element).fontSize))) }})
}})</script>"""


@pytest.fixture(scope="module")
def evaluated(shapes_root, tmp_path_factory):
    """Two engines evaluated on the same expressions of two splits: their files and their results files.

    The bundled checkpoint, and a copy with noise in one convolution.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    model = load_model(bundled("tiny"))
    with torch.no_grad():
        torch.manual_seed(0)
        weight = next(p for name, p in model.named_parameters() if "decoder" in name and p.ndim == 4)
        weight += 0.5 * weight.std() * torch.randn_like(weight)
    save_model(model, folder / "other.safetensors")
    engines, files = [bundled("tiny"), folder / "other.safetensors"], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads on busy cores are slower
    for name, engine in zip("ab", engines, strict=True):
        job = EvaluationJob(engine, None, shapes_root, "refcoco", ("val", "testA"), limit=8)
        run_job(job, results=folder / f"{name}.jsonl")
        files.append(folder / f"{name}.jsonl")
    torch.set_num_threads(threads)
    return engines, files


def by_digest(engines):
    return {model_sha256(engine): engine for engine in engines}


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    engines, files = evaluated
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, [read_results(file) for file in files], by_digest(engines))
    return path


def test_page_is_self_contained(page):
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"#]*)', text)
    assert {source[:16] for source in sources if source} == {"data:image/jpeg;"}
    assert "<script" not in text
    assert page.stat().st_size < 3e6


def test_metrics_match_the_results(evaluated, page):
    text = page.read_text()
    for file in evaluated[1]:
        results = read_results(file)
        ious = [r.intersection / r.union for r in results.records]
        assert f"<td>{100 * sum(ious) / len(ious):.2f}<small>" in text
        overall = sum(r.intersection for r in results.records) / sum(r.union for r in results.records)
        assert f"<td>{100 * overall:.2f}<small>" in text
        assert results.run["engine_sha256"] in text
    assert f"{len(results.records)} expressions" in text
    assert text.count("<caption>val</caption>") == text.count("<caption>testA</caption>") == 1


def test_each_section_shows_its_samples_in_order(evaluated, page):
    text = unescape(page.read_text())
    (best, worst, changed) = (
        re.search(rf'<h2 id="{anchor}">.*?(?=<h2)', text, re.DOTALL)[0]
        for anchor in ("best", "worst", "changed")
    )
    first, second = (read_results(file).records for file in evaluated[1])
    ious = [[r.intersection / r.union for r in records] for records in (first, second)]
    shown = [[float(x) for x in re.findall(r"<span>IoU ([\d.]+)</span>", part)] for part in (best, worst)]
    assert shown[0][::2] == sorted(shown[0][::2], reverse=True)
    assert shown[0][0] == pytest.approx(max(ious[0]), abs=5e-4)
    assert shown[1][::2] == sorted(shown[1][::2])
    assert shown[1][0] == pytest.approx(min(ious[0]), abs=5e-4)
    most = max(range(len(first)), key=lambda i: abs(ious[0][i] - ious[1][i]))
    assert first[most].text in re.search(r"<q>(.*?)</q>", changed)[1]


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_the_complete_page(page, width):
    harness = page.with_name(f"harness-{width}.html")
    harness.write_text(HARNESS.format(width=width))
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={page.parent / f'profile-{width}'}", "--dump-dom", harness.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(unescape(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout)[1]))
    text = page.read_text()
    assert measured["page"] == measured["window"] <= width
    assert measured["images"] == text.count("<img ") >= 3 * 4 * 3
    assert measured["charts"] == 3
    assert measured["smallest_font"] >= 12


def test_missing_engine_leaves_out_images_with_the_reason(evaluated, tmp_path):
    engines, files = evaluated
    path = tmp_path / "report.html"
    write_report(path, [read_results(file) for file in files], by_digest(engines[:1]))
    text = path.read_text()
    assert "<img " not in text
    assert "the files of other.safetensors were not given" in text


def test_names_are_escaped(evaluated, tmp_path):
    results = read_results(evaluated[1][0])
    named = dataclasses.replace(results, run=results.run | {"engine": "<b>bold</b>.onnx"})
    write_report(tmp_path / "report.html", [named])
    assert "<b>" not in (tmp_path / "report.html").read_text()


def test_results_of_other_expressions_are_rejected(evaluated, tmp_path):
    first, second = (read_results(file) for file in evaluated[1])
    path = tmp_path / "report.html"
    cases = [
        (
            dataclasses.replace(second, run=second.run | {"convention": "480"}),
            "their convention is original and 480",
        ),
        (dataclasses.replace(second, records=second.records[:-1]), "not of the same expressions"),
        (dataclasses.replace(second, records=()), "has no results yet"),
    ]
    for other, message in cases:
        with pytest.raises(UserError, match=message):
            write_report(path, [first, other])
    reversed_order = dataclasses.replace(second, records=second.records[::-1])
    entries = entries_of([first, reversed_order], {})
    assert [entry.results.records for entry in entries] == [first.records, second.records]
    with pytest.raises(UserError, match="is not one of the evaluated engines"):
        write_report(path, [first], by_digest([evaluated[1][1]]))
    assert list(tmp_path.iterdir()) == []


def test_report_command_writes_the_page(command, evaluated, tmp_path):
    engines, files = evaluated
    drift = tmp_path / "drift.svg"
    drift.write_text('<?xml version="1.0"?><svg viewBox="0 0 9 9"><text>M_4</text></svg>')
    done = command(main, "report", files[0], "-o", "out.html", "--engine", engines[0], "--drift", drift)
    assert done.code == 0
    assert "wrote out.html" in done.out
    assert "<text>M_4</text>" in (tmp_path / "out.html").read_text()


def test_report_compares_an_evaluation_with_its_reference(command, evaluated, shapes_root, tmp_path):
    engines, _ = evaluated
    done = command(
        main, "--engine", engines[1], "--reference", engines[0], "--data", shapes_root, "--limit", 4,
        "--json", "all.json", "--report", "out.html",
    )  # fmt: skip
    assert "wrote out.html" in done.out
    text = (tmp_path / "out.html").read_text()
    val = json.loads((tmp_path / "all.json").read_text())["splits"]["val"]
    rows = re.findall(r"</span>(\S+)</th>\s*(?:<td>.*?</td>\s*)+</tr>", text)
    assert rows == ["tiny.safetensors", "other.safetensors"]
    for key in ("reference_metrics", "metrics"):
        assert f"<td>{100 * val[key]['mIoU']:.2f}<small>" in text
    assert '<h2 id="changed">' in text
    assert not re.search(r"\bnan\b", re.sub(r"base64,[\w+/=]+", "", text), re.IGNORECASE)


def test_user_errors_are_one_line(command, evaluated, tmp_path):
    (tmp_path / "no.svg").write_text("<svg><script>1</script></svg>")
    cases = [
        (["none.jsonl"], "none.jsonl"),
        ([evaluated[1][0], "-o", "out.pdf"], "must end in .html"),
        ([evaluated[1][0], "--drift", "no.svg"], "is not an SVG of tfanet-eval drift"),
    ]
    assert "must end in .html" in command(main, "--report", "out.png").err
    for arguments, message in cases:
        done = command(main, "report", *arguments)
        assert done.code == 2
        assert message in done.err
        assert done.err.count("\n") - done.err.startswith("⠋") == 1
        assert not (tmp_path / "report.html").exists()


def test_charts_of_one_page_do_not_share_ids():
    import numpy as np

    engines = [("a", np.array([0.1, 0.5, 0.9])), ("b", np.array([0.2]))]
    svgs = [
        charts.iou_histogram(engines),
        charts.precision_curve(engines),
        charts.latency_distribution(engines),
    ]
    ids = [name for svg in svgs for name in re.findall(r'id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        defined = set(re.findall(r'id="([^"]+)"', svg))
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used <= defined
        assert "currentColor" in svg
        assert "#123456" not in svg


def test_report_of_one_record(evaluated, tmp_path):
    results = read_results(evaluated[1][0])
    one = dataclasses.replace(results, records=(record(0, intersection=0, union=9),))
    write_report(tmp_path / "report.html", [one])
    assert "1 expression, 1 image ·" in (tmp_path / "report.html").read_text()
