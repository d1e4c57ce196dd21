// A module that has nothing to do with engines.
extern "C" int PhotonNothing() {
  return 0;
}
