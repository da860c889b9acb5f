var scenes = Object.keys(gd._fullLayout).filter(function (key) { return /^scene[0-9]*$/.test(key); });
var busy = false;
function follow(event) {
  if (busy || !event) return;
  var moved = Object.keys(event).filter(function (key) { return /^scene[0-9]*\.camera$/.test(key); })[0];
  if (!moved) return;
  var update = {};
  scenes.forEach(function (scene) {
    if (scene + ".camera" !== moved) update[scene + ".camera"] = event[moved];
  });
  if (!Object.keys(update).length) return;
  busy = true;
  Plotly.relayout(gd, update).then(function () { busy = false; }, function () { busy = false; });
}
if (scenes.length > 1) {
  gd.on("plotly_relayouting", follow);
  gd.on("plotly_relayout", follow);
}
