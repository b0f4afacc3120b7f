// Draws every player in the document that is not live yet. It runs once after each player's HTML, and asks
// the document rather than document.currentScript, which notebooks that insert their outputs leave empty.
(() => {
  "use strict";
  // One size and one set of margins for all panels, so that their axes line up.
  const SIZE = { width: 360, height: 240, left: 42, right: 8, top: 26, bottom: 42 };
  const SECONDS = 10; // what a run through all frames takes, within the limits of `delay`
  const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const SVG = "http://www.w3.org/2000/svg";

  const add = (parent, tag, attributes = {}, text = "") => {
    const inSvg = tag === "svg" || parent.namespaceURI === SVG;
    const node = inSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return parent.appendChild(node);
  };

  const icon = (button, path) => {
    button.replaceChildren();
    add(add(button, "svg", { viewBox: "0 0 16 16" }), "path", { d: path });
  };

  const scale = ([low, high], from, to) => (value) =>
    Number((from + ((value - low) / (high - low)) * (to - from)).toFixed(2));

  const axisX = (svg, axis, grid) => {
    const x = scale(axis.limits, SIZE.left, SIZE.width - SIZE.right);
    const base = SIZE.height - SIZE.bottom;
    for (const [value, text] of axis.ticks) {
      if (grid) add(svg, "path", { class: "grid", d: `M${x(value)},${SIZE.top}V${base}` });
      add(svg, "text", { x: x(value), y: base + 17, "text-anchor": "middle" }, text);
    }
    add(svg, "text", { x: (SIZE.left + SIZE.width) / 2, y: SIZE.height - 6, "text-anchor": "middle" },
      axis.label);
    return x;
  };

  const axisY = (svg, axis) => {
    const y = scale(axis.limits, SIZE.height - SIZE.bottom, SIZE.top);
    for (const [value, text] of axis.ticks) {
      add(svg, "path", { class: "grid", d: `M${SIZE.left},${y(value)}H${SIZE.width - SIZE.right}` });
      add(svg, "text", { x: SIZE.left - 7, y: y(value) + 4.5, "text-anchor": "end" }, text);
    }
    add(svg, "text", { x: 0, y: 13 }, axis.label);
    return y;
  };

  const key = (legend, name, attributes) => {
    const entry = add(legend, "span");
    add(add(entry, "svg", { viewBox: "-10 -6 20 12" }), "path", attributes);
    add(entry, "span", {}, name);
    return entry;
  };

  // The i-th number of a text with two letters a number, from 0 to 4095: a share of its axis.
  const share = (text, i) =>
    (64 * LETTERS.indexOf(text[2 * i]) + LETTERS.indexOf(text[2 * i + 1])) / 4095;

  // Each kind of panel draws what stays and returns a function that draws one frame.
  const kinds = {
    scatter(svg, legend, spec) {
      axisX(svg, spec.x, true);
      axisY(svg, spec.y);
      const x = scale([0, 1], SIZE.left, SIZE.width - SIZE.right);
      const y = scale([0, 1], SIZE.height - SIZE.bottom, SIZE.top);
      const marks = spec.marks.map((mark) => {
        const look = { class: "filled", style: `--hue: ${mark.color}`, d: mark.shape };
        key(legend, mark.name, { ...look, transform: "scale(9)" });
        const nodes = Array.from({ length: mark.points[0].length / 4 }, () => add(svg, "path", look));
        return { nodes, points: mark.points };
      });
      return (frame) => {
        for (const { nodes, points } of marks) {
          nodes.forEach((node, i) => {
            const [px, py] = [share(points[frame], 2 * i), share(points[frame], 2 * i + 1)];
            node.setAttribute("transform", `translate(${x(px)},${y(py)}) scale(6.5)`);
          });
        }
      };
    },

    lines(svg, legend, spec) {
      const x = axisX(svg, spec.x, false);
      const y = axisY(svg, spec.y);
      const decimals = Math.max(0, spec.y.decimals - 1);
      const cursor = add(svg, "path", { class: "cursor" });
      const curves = spec.curves.map((curve) => {
        const corners = curve.values.map((value, i) => `${x(spec.at[i])},${y(value)}`);
        const dash = curve.dash.map((lineWidths) => 2 * lineWidths).join(" ");
        const style = `--hue: ${curve.color}; stroke-dasharray: ${dash}`;
        const look = { class: "curve", style };
        const entry = key(legend, curve.name, { ...look, d: "M-10,0H10" });
        add(svg, "path", { ...look, class: "curve whole", d: `M${corners.join("L")}` });
        return {
          corners,
          values: curve.values,
          path: add(svg, "path", look),
          dot: add(svg, "circle", { class: "filled", style, r: 4 }),
          value: add(entry, "b"),
        };
      });
      return (frame) => {
        const here = x(spec.at[frame]);
        cursor.setAttribute("d", `M${here},${SIZE.top}V${SIZE.height - SIZE.bottom}`);
        for (const { corners, values, path, dot, value } of curves) {
          path.setAttribute("d", `M${corners.slice(0, frame + 1).join("L")}`);
          dot.setAttribute("cx", here);
          dot.setAttribute("cy", y(values[frame]));
          value.textContent = values[frame].toFixed(decimals).replace("-", "−");
        }
      };
    },

    bars(svg, legend, spec) {
      const y = axisY(svg, spec.y);
      const step = (SIZE.width - SIZE.left - SIZE.right) / spec.labels.length;
      const bars = spec.labels.map((label, i) => {
        const middle = SIZE.left + (i + 0.5) * step;
        const under = { x: middle, y: SIZE.height - SIZE.bottom + 17, "text-anchor": "middle" };
        add(svg, "text", under, label);
        const look = { class: "filled", style: `--hue: ${spec.color}` };
        return add(svg, "rect", { ...look, x: middle - 0.35 * step, width: 0.7 * step });
      });
      return (frame) => {
        bars.forEach((bar, i) => {
          const [top, bottom] = [0, spec.heights[frame][i]].map(y).sort((a, b) => a - b);
          bar.setAttribute("y", top);
          bar.setAttribute("height", bottom - top);
        });
      };
    },
  };

  const mount = (figure) => {
    const { frames, start, panels } = JSON.parse(
      figure.querySelector("script[type='application/json']").textContent,
    );
    const last = frames.length - 1;

    const stage = add(figure, "div", { class: "stage", "aria-hidden": true });
    const updates = panels.map((spec) => {
      const panel = add(stage, "div", { class: "panel" });
      add(panel, "strong", {}, spec.title);
      const legend = add(panel, "div", { class: "legend" });
      const svg = add(panel, "svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}` });
      return kinds[spec.kind](svg, legend, spec);
    });

    const controls = add(figure, "div", { class: "controls" });
    const button = () => add(controls, "button", { type: "button" });
    const [back, play, forward] = [button(), button(), button()];
    back.setAttribute("aria-label", "One step back");
    forward.setAttribute("aria-label", "One step forward");
    icon(back, "M13 2v12L5 8zM3 2h2v12H3z");
    icon(forward, "M3 2v12l8-6zM11 2h2v12h-2z");
    const label = add(controls, "span", { class: "label", "aria-hidden": true });
    // Room for the longest label, so that the slider keeps its length.
    label.style.minWidth = `${Math.max(...frames.map((text) => text.length))}ch`;
    const slider = add(controls, "input", { type: "range", min: 0, max: last, step: 1 });
    slider.setAttribute("aria-label", "Frame");

    let frame = start;
    let timer = null;

    const show = (next) => {
      frame = Math.min(Math.max(next, 0), last);
      slider.value = frame;
      slider.setAttribute("aria-valuetext", frames[frame]);
      label.textContent = frames[frame];
      for (const update of updates) update(frame);
    };
    const setPlaying = (playing) => {
      clearInterval(timer);
      timer = playing ? setInterval(advance, delay()) : null;
      icon(play, playing ? "M3 2h4v12H3zM9 2h4v12H9z" : "M3 1.5v13L14 8z");
      play.setAttribute("aria-label", playing ? "Pause" : "Play");
    };
    const delay = () => {
      const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      return Math.min(Math.max((1000 * SECONDS) / frames.length, calm ? 700 : 80), 700);
    };
    const advance = () => {
      show(frame + 1);
      if (frame === last) setPlaying(false);
    };
    const step = (next) => {
      setPlaying(false);
      show(next);
    };
    const toggle = () => {
      if (timer === null && frame === last) show(0);
      setPlaying(timer === null);
    };

    play.addEventListener("click", toggle);
    back.addEventListener("click", () => step(frame - 1));
    forward.addEventListener("click", () => step(frame + 1));
    slider.addEventListener("input", () => step(Number(slider.value)));
    figure.addEventListener("keydown", (event) => {
      const keys = {
        ArrowLeft: () => step(frame - 1),
        ArrowRight: () => step(frame + 1),
        Home: () => step(0),
        End: () => step(last),
        " ": toggle,
      };
      const pressesButton = event.key === " " && event.target.closest("button");
      const chord = event.ctrlKey || event.altKey || event.metaKey || event.shiftKey;
      if (!(event.key in keys) || pressesButton || chord) return;
      event.preventDefault(); // the slider would step a second time, the page would scroll
      event.stopPropagation();
      keys[event.key]();
    });

    setPlaying(false);
    show(start);
    figure.querySelector("img").remove();
    figure.dataset.live = "";
  };

  for (const figure of document.querySelectorAll(".vaelib-player:not([data-live])")) mount(figure);
})();
