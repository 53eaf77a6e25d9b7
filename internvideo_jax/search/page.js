"use strict";

// Everything that comes from files, labels or queries is set as text, never as HTML.

const PLAYING = 4; // clips at a time: browsers open six connections to a server
const BARS = 4; // labels shown for a clip
const LONGEST = 20000; // characters sent; the server says what it made of them

const $ = (id) => document.getElementById(id);
const make = (name, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...children);
  return element;
};

let shown = []; // the clips of the last answer, in order
let labelled = false; // whether the results carry bars
let asked = 0; // number of the last request, so that a late answer cannot replace a newer one

async function call(path, body) {
  let answer;
  try {
    const options = body && {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    };
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || `the server answers ${answer.status}`);
  return found;
}

function say(status, problem = "", note = "") {
  $("status").textContent = status;
  $("problem").textContent = problem;
  $("note").textContent = note;
}

function busy(on) {
  for (const button of document.querySelectorAll("button")) button.disabled = on;
  $("results").setAttribute("aria-busy", String(on));
}

const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  const rest = String(Math.floor(tenths / 10) % 60).padStart(2, "0");
  return `${Math.floor(tenths / 600)}:${rest}.${tenths % 10}`;
};

function still(result) {
  return make("img", { className: "still", src: result.thumbnail, alt: `Picture of ${result.file}` });
}

function player(result) {
  if (result.file.toLowerCase().endsWith(".gif")) {
    return make("img", { className: "still", src: result.media, alt: `Clip ${result.file}` });
  }
  const video = make("video", {
    src: `${result.media}#t=${result.start},${result.end}`,
    poster: result.thumbnail,
    muted: true,
    controls: true,
    playsInline: true,
    preload: "none",
  });
  video.setAttribute("aria-label", `Clip ${result.rank}: ${result.file}`);
  const again = () => {
    video.currentTime = result.start;
    video.play().catch(() => {});
  };
  video.addEventListener("ended", again);
  video.addEventListener("timeupdate", () => {
    if (!video.paused && video.currentTime >= result.end) again();
  });
  video.addEventListener("error", () => {
    const text = "This browser cannot play the file; this is a picture of it.";
    video.replaceWith(still(result), make("p", { className: "quiet", textContent: text }));
  });
  return video;
}

function card(result) {
  const facts = make(
    "div",
    { className: "facts" },
    make(
      "p",
      {},
      make("span", { className: "rank", textContent: `${result.rank}` }),
      ` · similarity ${result.similarity.toFixed(3)}`,
    ),
    make("p", { className: "file", textContent: result.file }),
    make("p", { className: "quiet", textContent: `${clock(result.start)} to ${clock(result.end)}` }),
    make("p", { className: "quiet", textContent: result.note }),
    make("ul", { className: "bars" }),
  );
  return make("li", {}, player(result), facts);
}

// Clips play while they can be seen, unless the reader wants no motion.
const visible = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) target.dataset.seen = isIntersecting ? "1" : "";
  const videos = [...document.querySelectorAll("video")];
  const wanted = matchMedia("(prefers-reduced-motion: reduce)").matches
    ? []
    : videos.filter((video) => video.dataset.seen).slice(0, PLAYING);
  for (const video of videos) {
    if (wanted.includes(video)) video.play().catch(() => {});
    else if (!video.dataset.seen) video.pause();
  }
}, { threshold: 0.5 });

function show(results) {
  visible.disconnect();
  shown = results;
  $("results").replaceChildren(...results.map(card));
  for (const video of document.querySelectorAll("video")) visible.observe(video);
}

function classes() {
  return $("labels").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

async function label() {
  const labels = classes();
  if (!shown.length || !labels.length) {
    for (const list of document.querySelectorAll(".bars")) list.replaceChildren();
    return;
  }
  const number = asked;
  const found = await call("/api/labels", {
    clips: shown.map((result) => result.clip),
    labels,
    template: $("template").value,
  });
  if (number !== asked) return;
  document.querySelectorAll(".bars").forEach((list, i) => {
    const best = found.clips[i].probabilities
      .map((p, k) => [found.labels[k], p])
      .sort((a, b) => b[1] - a[1])
      .slice(0, BARS);
    list.replaceChildren(...best.map(([name, p]) => {
      const share = `${(100 * p).toFixed(1)} %`;
      const fill = make("div", { className: "fill" });
      fill.style.width = `${100 * p}%`;
      const words = make(
        "div",
        { className: "words" },
        make("span", { textContent: name }),
        make("span", { textContent: share }),
      );
      return make("li", {}, fill, words);
    }));
  });
}

async function search() {
  const query = $("query").value.trim().slice(0, LONGEST);
  if (!query) {
    asked += 1;
    show([]);
    say("Type what should happen in the video.");
    return;
  }
  const number = ++asked;
  say("Searching…");
  busy(true);
  try {
    const found = await call("/api/search", { query });
    if (number !== asked) return;
    show(found.results);
    const count = found.results.length;
    say(count ? `${count} clips, best first` : "No clip to be found", "", found.note && `Note: ${found.note}.`);
    if (labelled) await label();
  } catch (error) {
    if (number === asked) {
      show([]);
      say("", error.message);
    }
  } finally {
    if (number === asked) busy(false);
  }
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});

$("label").addEventListener("submit", async (event) => {
  event.preventDefault();
  labelled = true;
  busy(true);
  try {
    $("problem").textContent = "";
    await label();
    if (!shown.length) say("Search first; the labels go to the results.");
  } catch (error) {
    $("problem").textContent = error.message;
  } finally {
    busy(false);
  }
});

// "/" goes to the search box from anywhere outside a field.
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) return;
  event.preventDefault();
  $("query").focus();
  $("query").select();
});

async function start() {
  let status;
  busy(true);
  for (;;) {
    try {
      status = await call("/api/status");
    } catch (error) {
      say("", error.message);
      return;
    }
    if (status.state !== "loading") break;
    say(status.total ? `Reading the videos: ${status.done} of ${status.total}` : "Reading the videos…");
    await new Promise((resume) => setTimeout(resume, 500));
  }
  if (status.state === "error") {
    say("", status.error);
    return;
  }
  busy(false);
  $("about").textContent = `${status.videos} videos, ${status.clips} clips`;
  $("labels").value = status.labels.join("\n");
  labelled = status.labels.length > 0;
  $("template").replaceChildren(...status.templates.map((name) => make("option", { textContent: name })));
  $("template").value = status.template;
  if (status.skipped.length) {
    $("skipped").hidden = false;
    $("skipped").querySelector("summary").textContent = `${status.skipped.length} files could not be used`;
    $("skipped").querySelector("ul").replaceChildren(
      ...status.skipped.map((file) => make("li", { textContent: `${file.name}: ${file.reason}` })),
    );
  }
  say(status.clips ? "Type what should happen in the video." : "None of the files could be used.");
  $("query").focus();
}

start();
