"""The page: what it says is what the results say, and a browser shows it whole at any width."""

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
from tfanet_eval.report.page import _same, write_report
from tfanet_eval.results import read_results

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HARNESS = """<iframe src="report.html" style="width: {width}px; height: 3000px; border: 0"></iframe>
<pre id="found"></pre><script>addEventListener("load", () => {{
const page = document.querySelector("iframe").contentDocument, root = page.documentElement
const shown = element => {{
  const box = element.getBoundingClientRect(); return box.width > 40 && box.height > 40 }}
document.querySelector("#found").textContent = JSON.stringify({{
  page: root.scrollWidth, room: root.clientWidth,
  pictures: [...page.images].filter(picture => shown(picture) && picture.naturalWidth > 0).length,
  charts: [...page.querySelectorAll("figure svg")].filter(shown).length,
  letters: Math.min(...[...page.querySelectorAll("p, td, th, span, figcaption")].map(
    element => parseFloat(getComputedStyle(element).fontSize))) }})
}})</script>"""


@pytest.fixture(scope="module")
def evaluated(shapes_root, tmp_path_factory):
    """Two engines on the same expressions of two splits: their files and their results files.

    The bundled checkpoint, and one in which a convolution was disturbed.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    model = load_model(bundled("tiny"))
    with torch.no_grad():
        torch.manual_seed(0)
        weight = next(p for name, p in model.named_parameters() if "decoder" in name and p.ndim == 4)
        weight += 0.5 * weight.std() * torch.randn_like(weight)
    save_model(model, folder / "other.safetensors")
    engines, found = [bundled("tiny"), folder / "other.safetensors"], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for one another on busy cores make a short test long
    for name, engine in zip("ab", engines, strict=True):
        job = EvaluationJob(engine, None, shapes_root, "refcoco", ("val", "testA"), limit=8)
        run_job(job, results=folder / f"{name}.jsonl")
        found.append(folder / f"{name}.jsonl")
    torch.set_num_threads(threads)
    return engines, found


def by_digest(engines):
    return {model_sha256(engine): engine for engine in engines}


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    engines, files = evaluated
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, [read_results(file) for file in files], by_digest(engines))
    return path


def test_the_page_needs_nothing_but_itself(page):
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"#]*)', text)
    assert {source[:16] for source in sources if source} == {"data:image/jpeg;"}
    assert "<script" not in text
    assert page.stat().st_size < 3e6


def test_the_figures_are_those_of_the_results(evaluated, page):
    text = page.read_text()
    for file in evaluated[1]:
        found = read_results(file)
        ious = [r.intersection / r.union for r in found.records]
        assert f"<td>{100 * sum(ious) / len(ious):.2f}<small>" in text
        overall = sum(r.intersection for r in found.records) / sum(r.union for r in found.records)
        assert f"<td>{100 * overall:.2f}<small>" in text
        assert found.run["engine_sha256"] in text
    assert f"{len(found.records)} expressions" in text
    assert text.count("<caption>val</caption>") == text.count("<caption>testA</caption>") == 1


def test_each_sheet_shows_its_samples_in_order(evaluated, page):
    text = unescape(page.read_text())
    (best, worst, changed) = (
        re.search(rf'<h2 id="{anchor}">.*?(?=<h2)', text, re.DOTALL)[0]
        for anchor in ("best", "worst", "changed")
    )
    first, second = (read_results(file).records for file in evaluated[1])
    ious = [[r.intersection / r.union for r in records] for records in (first, second)]
    shown = [[float(x) for x in re.findall(r"<span>IoU ([\d.]+)</span>", sheet)] for sheet in (best, worst)]
    assert shown[0][::2] == sorted(shown[0][::2], reverse=True)
    assert shown[0][0] == pytest.approx(max(ious[0]), abs=5e-4)
    assert shown[1][::2] == sorted(shown[1][::2])
    assert shown[1][0] == pytest.approx(min(ious[0]), abs=5e-4)
    most = max(range(len(first)), key=lambda i: abs(ious[0][i] - ious[1][i]))
    assert first[most].text in re.search(r"<q>(.*?)</q>", changed)[1]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_it_whole(page, width):
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
    found = json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout)[1]))
    text = page.read_text()
    assert found["page"] == found["room"] <= width
    assert found["pictures"] == text.count("<img ") >= 3 * 4 * 3
    assert found["charts"] == 3
    assert found["letters"] >= 12


def test_visualize_are_left_out_with_the_reason(evaluated, tmp_path):
    engines, files = evaluated
    path = tmp_path / "report.html"
    write_report(path, [read_results(file) for file in files], by_digest(engines[:1]))
    text = path.read_text()
    assert "<img " not in text
    assert "the files of other.safetensors were not given" in text


def test_sentences_are_no_markup(evaluated, tmp_path):
    found = read_results(evaluated[1][0])
    named = dataclasses.replace(found, run=found.run | {"engine": "<b>bold</b>.onnx"})
    write_report(tmp_path / "report.html", [named])
    assert "<b>" not in (tmp_path / "report.html").read_text()


def test_results_of_other_expressions_do_not_stand_beside_them(evaluated, tmp_path):
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
    turned = dataclasses.replace(second, records=second.records[::-1])
    assert [one.records for one in _same([first, turned])] == [first.records, second.records]
    with pytest.raises(UserError, match="another file than the engines that were evaluated"):
        write_report(path, [first], by_digest([evaluated[1][1]]))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_page(command, evaluated, tmp_path):
    engines, files = evaluated
    drift = tmp_path / "drift.svg"
    drift.write_text('<?xml version="1.0"?><svg viewBox="0 0 9 9"><text>M_4</text></svg>')
    done = command(main, "report", files[0], "-o", "out.html", "--engine", engines[0], "--drift", drift)
    assert done.code == 0
    assert "wrote out.html" in done.out
    assert "<text>M_4</text>" in (tmp_path / "out.html").read_text()


def test_an_evaluation_is_shown_beside_its_reference(command, evaluated, shapes_root, tmp_path):
    engines, _ = evaluated
    done = command(
        main, "--engine", engines[1], "--reference", engines[0], "--data", shapes_root, "--limit", 4,
        "--json", "all.json", "--report", "out.html",
    )  # fmt: skip
    assert "wrote out.html" in done.out
    text = (tmp_path / "out.html").read_text()
    found = json.loads((tmp_path / "all.json").read_text())["splits"]["val"]
    rows = re.findall(r"</span>(\S+)</th>\s*(?:<td>.*?</td>\s*)+</tr>", text)
    assert rows == ["tiny.safetensors", "other.safetensors"]
    for key in ("reference_metrics", "metrics"):
        assert f"<td>{100 * found[key]['mIoU']:.2f}<small>" in text
    assert '<h2 id="changed">' in text
    assert not re.search(r"\bnan\b", re.sub(r"base64,[\w+/=]+", "", text), re.IGNORECASE)


def test_mistakes_end_in_one_line(command, evaluated, tmp_path):
    (tmp_path / "no.svg").write_text("<svg><script>1</script></svg>")
    cases = [
        (["none.jsonl"], "none.jsonl"),
        ([evaluated[1][0], "-o", "out.pdf"], "must end in .html"),
        ([evaluated[1][0], "--drift", "no.svg"], "no drawing"),
    ]
    assert "must end in .html" in command(main, "--report", "out.png").err
    for arguments, message in cases:
        done = command(main, "report", *arguments)
        assert done.code == 2
        assert message in done.err
        assert done.err.count("\n") - done.err.startswith("⠋") == 1
        assert not (tmp_path / "report.html").exists()


def test_charts_of_one_page_do_not_share_names():
    import numpy as np

    engines = [("a", np.array([0.1, 0.5, 0.9])), ("b", np.array([0.2]))]
    drawn = [
        charts.iou_histogram(engines),
        charts.precision_curve(engines),
        charts.latency_distribution(engines),
    ]
    ids = [name for svg in drawn for name in re.findall(r'id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in drawn:
        named = set(re.findall(r'id="([^"]+)"', svg))
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used <= named
        assert "currentColor" in svg
        assert "#123456" not in svg


def test_one_record_is_enough(evaluated, tmp_path):
    found = read_results(evaluated[1][0])
    one = dataclasses.replace(found, records=(record(0, intersection=0, union=9),))
    write_report(tmp_path / "report.html", [one])
    assert "1 expression, 1 picture ·" in (tmp_path / "report.html").read_text()
