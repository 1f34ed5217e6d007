"""Names such as "vigilant-tereshkova": easy to say, to remember and to type."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES = _words("""
able agile alert amber ample apt arctic artful astute atomic autumn avid balmy bold bonny boreal
brave breezy bright brisk broad calm candid canny careful cheerful civil clear clever cloudless
coastal cogent cool coral cordial cosmic crimson crisp curious dapper daring dashing deft
devoted diligent distant dulcet eager early earnest elated electric elegant eloquent emerald
eminent epic even exact fair faithful famous fearless festive fine fleet fluent focal fond frank
free fresh frosty gallant generous gentle genuine giddy gifted glad gleaming golden graceful
grand grateful great hale handy happy hardy harmonic hearty helpful heroic honest hopeful humble
ideal inventive ivory jaunty jolly jovial joyful just keen kind kindly lasting lavish lean
learned level light limber lively logical loyal lucid lucky lunar magnetic majestic marine
mellow merry mighty mild mindful modest musical native neat nimble noble northern novel open
optimal orderly outgoing patient peaceful pensive plucky poetic poised polite precise prime
proud prudent pure quick quiet radiant rapid ready refined resolute restful robust rosy rugged
rustic sage scenic serene sharp shining silent silken silver sincere skilful sleek smart snowy
solar solid sonic spirited splendid spry stalwart steadfast steady stellar sterling stoic sturdy
subtle sunny supple swift tactful tall tender thankful thorough thrifty tidy timely tireless
tranquil trusty upbeat upright urbane valiant vast verdant versatile vibrant vigilant vivid warm
wise witty worthy zealous zesty
""")
_SURNAMES = _words("""
abel agnesi airy alhazen ampere anning apgar archimedes aryabhata atiyah avogadro babbage banach
banneker bardeen bartik bassi bayes becquerel bell benioff bernoulli bhabha bhaskara birkhoff
bjerknes blackburn blackwell bohr boltzmann boole borg born bose bouman boyle bragg brahe
brahmagupta brown buck burnell butler cannon cantor cardano carson cartwright carver cauchy
cavendish cerf chandrasekhar chatelet chebyshev chern clarke colden collip copernicus cori
coulomb cray curie dalton darwin davinci davy dedekind descartes dewdney diffie dijkstra dirac
driscoll dubinsky easley edison einstein elbakyan elion ellis engelbart erdos euclid euler
faraday feistel fermat fermi feynman fibonacci fisher fleming fourier franklin fraunhofer frege
fresnel galileo galois ganguly gates gauss germain gibbs goedel goldberg goldstine golick
goodall gould green gutenberg haibt halley hamilton hardy haslett hawking heaviside heisenberg
hellman helmholtz hermann hermite herschel hertz hilbert hodgkin hoover hopper hubble humboldt
huygens hypatia jackson jacobi jang jemison jennings jepsen johnson joliot jones joule kalam
kapitsa kare keller kelvin kepler khayyam khorana kilby kirch knuth kolmogorov kovalevskaya
lagrange lalande lamarr lamport landau laplace lavoisier leakey leavitt lebesgue legendre
lehmann leibniz lewin lichterman lie linnaeus liskov lorentz lovelace lumiere mahavira margulis
markov matsumoto maxwell mayer mccarthy mcclintock mclaren mclean mcnulty meitner mendel
mendeleev meninsky merkle mestorf minkowski mirzakhani montalcini moore morse moser murdock
napier nash neumann newton nightingale nobel noether northcutt noyce ohm oppenheimer panini
pappus pare pascal pasteur pauli payne perlman pike planck poincare poisson poitras
proskuriakova ptolemy pythagoras raman ramanujan rhodes ride riemann ritchie robinson roentgen
rosalind rubin rutherford saha sammet sanderson satoshi shamir shannon shaw shirley shockley
sinoussi skolem snyder solomon spence stokes stonebraker sutherland swanson swartz swirles
tarski taussig tereshkova tesla tharp thompson torvalds tu turing varahamihira vaughan villani
visvesvaraya volhard volta wegener weierstrass wescoff weyl wilbur wiles williams williamson
wing wozniak wright wu yalow yonath zhukovsky
""")

_random = random.SystemRandom()  # not the seeded one: two notebooks may share a seed


def new_name(attempt: int = 0) -> str:
    """An adjective and a surname; from the fourth attempt on with a number, so that an
    experiment never runs out of names.

    >>> len(new_name().split("-")), len(new_name(5).split("-"))
    (2, 3)
    """
    name = f"{_random.choice(_ADJECTIVES)}-{_random.choice(_SURNAMES)}"
    return name if attempt < 4 else f"{name}-{_random.randrange(2, 10 ** (attempt - 1))}"
