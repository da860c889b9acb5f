"use strict";
(function () {
  var data = JSON.parse(document.getElementById("data").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var tables = Array.prototype.slice.call(document.querySelectorAll(".turntable"));
  if (!window.Plotly || !tables.length) return;

  function themed(layout) {
    var colors = data.themes[dark.matches ? "dark" : "light"], ink = colors[0], paper = colors[1], grid = colors[2];
    layout.paper_bgcolor = layout.plot_bgcolor = paper;
    layout.font.color = ink;
    ["xaxis", "yaxis", "zaxis"].forEach(function (name) {
      var axis = layout.scene[name];
      axis.color = ink;
      axis.gridcolor = axis.zerolinecolor = grid;
    });
    return layout;
  }

  function eye(azimuth, elevation) {
    var a = azimuth * Math.PI / 180, e = Math.min(elevation, 89.9) * Math.PI / 180, r = 2.25;
    return { eye: { x: r * Math.cos(e) * Math.cos(a), y: r * Math.cos(e) * Math.sin(a), z: r * Math.sin(e) }, center: { x: 0, y: 0, z: -0.1 }, up: { x: 0, y: 0, z: 1 } };
  }

  tables.forEach(function (table) {
    var figures = data.surfaces[table.dataset.key].figures;
    var plots = Array.prototype.slice.call(table.querySelectorAll(".plot"));
    var sliders = {}, busy = false;
    table.hidden = false;
    table.querySelectorAll("input").forEach(function (input) {
      sliders[input.dataset.angle] = input;
      input.addEventListener("input", function () { turn(camera(), null); });
    });

    function camera() { return eye(Number(sliders.azimuth.value), Number(sliders.elevation.value)); }

    function turn(view, from) {
      if (busy) return;
      busy = true;
      Promise.all(plots.filter(function (plot) { return plot !== from && plot.data; }).map(function (plot) {
        return Plotly.relayout(plot, { "scene.camera": view });
      })).then(function () { busy = false; }, function () { busy = false; });
    }

    function draw(plot, index) {
      var figure = figures[index], layout = themed(JSON.parse(JSON.stringify(figure.layout)));
      delete layout.height;
      layout.autosize = true;
      layout.scene.camera = camera();
      var traces = figure.data.map(function (trace) {
        return Object.assign({}, trace, { colorbar: Object.assign({}, trace.colorbar, { tickfont: { color: layout.font.color }, title: { text: "" } }) });
      });
      return Plotly.newPlot(plot, traces, layout, data.config).then(function () {
        function follow(event) {
          var moved = event && event["scene.camera"];
          if (!moved || busy) return;
          var at = moved.eye, flat = Math.hypot(at.x, at.y);
          sliders.azimuth.value = Math.atan2(at.y, at.x) * 180 / Math.PI;
          sliders.elevation.value = Math.atan2(at.z, flat) * 180 / Math.PI;
          turn(moved, plot);
        }
        plot.on("plotly_relayouting", follow);
        plot.on("plotly_relayout", follow);
      });
    }

    // browsers keep few WebGL contexts: only the surfaces near the screen have one
    if ("IntersectionObserver" in window) {
      var watcher = new IntersectionObserver(function (entries) {
        entries.forEach(function (entry) {
          var plot = entry.target;
          if (entry.isIntersecting && !plot.data) draw(plot, plots.indexOf(plot));
          if (!entry.isIntersecting && plot.data) Plotly.purge(plot);
        });
      }, { rootMargin: "300px" });
      plots.forEach(function (plot) { watcher.observe(plot); });
    } else {
      plots.forEach(draw);
    }
    dark.addEventListener("change", function () {
      plots.forEach(function (plot, index) { if (plot.data) draw(plot, index); });
    });
  });
})();
