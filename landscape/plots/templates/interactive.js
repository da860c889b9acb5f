"use strict";
// Draws the figures of each .live element, moves them along their frames, and turns all their scenes together.
(function () {
  var data = JSON.parse(document.getElementById("data").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  if (!window.Plotly) return;

  function all(selector, root) { return Array.prototype.slice.call(root.querySelectorAll(selector)); }

  function scenes(layout) { return Object.keys(layout).filter(function (key) { return /^scene[0-9]*$/.test(key); }); }

  function hasWebGL() {
    var canvas = document.createElement("canvas"), context = canvas.getContext("webgl");
    if (!context) return false;
    var lose = context.getExtension("WEBGL_lose_context");
    if (lose) lose.loseContext();
    return true;
  }

  function themed(layout) {
    if (!data.themes) return layout;
    var colors = data.themes[dark.matches ? "dark" : "light"], ink = colors[0], paper = colors[1], grid = colors[2];
    layout.paper_bgcolor = layout.plot_bgcolor = paper;
    layout.font.color = ink;
    function paint(axis) {
      axis.color = axis.linecolor = ink;
      axis.gridcolor = axis.zerolinecolor = grid;
    }
    scenes(layout).forEach(function (key) { ["xaxis", "yaxis", "zaxis"].forEach(function (name) { paint(layout[key][name]); }); });
    Object.keys(layout).forEach(function (key) { if (/^[xy]axis[0-9]*$/.test(key)) paint(layout[key]); });
    return layout;
  }

  all(".live", document).forEach(function (root) {
    var figures = data.figures[root.dataset.key];
    var plots = all(".plot", root);
    var sliders = {}, frame = root.querySelector("[data-frame]"), play = root.querySelector("[data-play]");
    var turnable = figures.some(function (figure) { return scenes(figure.layout).length; });
    if (turnable && !hasWebGL()) return; // the picture beside says the same
    root.hidden = false;
    if (root.dataset.instead !== undefined) root.parentNode.classList.add("drawn");

    // Turning: one camera for all scenes of all figures.
    var camera = null, turning = false, pending = null, hand = null, settling = 0;

    function eye() {
      var a = sliders.azimuth.value * Math.PI / 180, e = Math.min(sliders.elevation.value, 89.9) * Math.PI / 180;
      var near = plots[0].clientWidth < 420, r = near ? 2.6 : 2.25;
      return { eye: { x: r * Math.cos(e) * Math.cos(a), y: r * Math.cos(e) * Math.sin(a), z: r * Math.sin(e) }, center: { x: 0, y: 0, z: -0.12 }, up: { x: 0, y: 0, z: 1 } };
    }

    function turn(view, from, scene) {
      camera = view;
      if (turning) { pending = [view, from, scene]; return; } // the last one is never lost
      turning = true;
      hand = [from, scene];
      Promise.all(plots.map(function (plot) {
        if (!plot.data) return null;
        var update = {};
        scenes(plot._fullLayout).forEach(function (key) { if (plot !== from || key !== scene) update[key + ".camera"] = view; });
        return Object.keys(update).length ? Plotly.relayout(plot, update) : null;
      })).catch(function () {}).then(function () {
        turning = false;
        if (pending) { var next = pending; pending = null; turn.apply(null, next); }
      });
    }

    function follow(plot) {
      return function (event) {
        var moved = Object.keys(event || {}).filter(function (key) { return /^scene[0-9]*\.camera$/.test(key); })[0];
        if (!moved) return;
        var scene = moved.split(".")[0], at = event[moved].eye;
        if (turning && (plot !== hand[0] || scene !== hand[1])) return; // moved by us, not by a hand
        sliders.azimuth.value = Math.atan2(at.y, at.x) * 180 / Math.PI;
        sliders.elevation.value = Math.atan2(at.z, Math.hypot(at.x, at.y)) * 180 / Math.PI;
        turn(event[moved], plot, scene);
        clearTimeout(settling);
        settling = setTimeout(function () { // the scene under the hand still glides a little when the hand has stopped
          var under = plot._fullLayout && plot._fullLayout[scene];
          if (under && under._scene) turn(under._scene.getCamera(), plot, scene);
        }, 300);
      };
    }

    all("[data-angle]", root).forEach(function (input) {
      sliders[input.dataset.angle] = input;
      input.addEventListener("input", function () { turn(eye(), null, ""); });
    });

    // Moving along frames.
    var timer = 0, moving = false;

    function show(plot, index) {
      var frames = figures[plots.indexOf(plot)].frames;
      return Plotly.animate(plot, [String(frames[index].name)], { mode: "immediate", frame: { duration: 0, redraw: true }, transition: { duration: 0 } });
    }

    function move() {
      var index = Number(frame.value), name = String(figures[0].frames[index].name);
      root.querySelector("output").textContent = name;
      frame.setAttribute("aria-valuetext", root.querySelector("[data-frame]").parentNode.firstChild.textContent.trim().toLowerCase() + " " + name);
      if (moving) return;
      moving = true;
      Promise.all(plots.map(function (plot) { return plot.data ? show(plot, index) : null; })).catch(function () {}).then(function () {
        moving = false;
        if (Number(frame.value) !== index) move();
      });
    }

    function stop() {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
      play.setAttribute("aria-pressed", "false");
    }

    if (frame) {
      frame.value = frame.max;
      frame.addEventListener("input", move);
      play.addEventListener("click", function () {
        if (timer) { stop(); return; }
        if (frame.value === frame.max) frame.value = -1;
        play.textContent = "Pause";
        play.setAttribute("aria-pressed", "true");
        timer = setInterval(function () {
          frame.value = Number(frame.value) + 1;
          move();
          if (frame.value === frame.max) stop();
        }, 500);
      });
    }

    function draw(plot) {
      var figure = JSON.parse(JSON.stringify(figures[plots.indexOf(plot)])), layout = themed(figure.layout);
      if (data.themes) delete layout.height;
      else if (layout.height) plot.style.setProperty("--least", layout.height + "px");
      delete layout.height;
      delete layout.sliders;
      layout.autosize = true;
      scenes(layout).forEach(function (key) {
        if (!data.themes && !camera) return; // a page of one figure begins as the figure does
        layout[key].camera = camera || eye();
        if (plot.clientWidth < 420) {
          ["xaxis", "yaxis", "zaxis"].forEach(function (name) { layout[key][name].title = { text: name === "zaxis" ? "" : name.charAt(0) }; });
        }
      });
      return Plotly.newPlot(plot, { data: figure.data, layout: layout, config: data.config, frames: figure.frames || [] }).then(function () {
        if (turnable) {
          plot.on("plotly_relayouting", follow(plot));
          plot.on("plotly_relayout", follow(plot));
        }
        plot.setAttribute("data-drawn", "");
        return frame && frame.value !== frame.max ? show(plot, Number(frame.value)) : null;
      });
    }

    // Browsers keep few WebGL contexts: only the figures near the screen have one.
    if ("IntersectionObserver" in window) {
      var watcher = new IntersectionObserver(function (entries) {
        entries.forEach(function (entry) {
          var plot = entry.target;
          if (entry.isIntersecting && !plot.data) draw(plot);
          if (!entry.isIntersecting && plot.data) { Plotly.purge(plot); plot.removeAttribute("data-drawn"); }
        });
      }, { rootMargin: "300px" });
      plots.forEach(function (plot) { watcher.observe(plot); });
    } else {
      plots.forEach(draw);
    }
    if (data.themes) dark.addEventListener("change", function () { plots.forEach(function (plot) { if (plot.data) draw(plot); }); });
  });
})();
